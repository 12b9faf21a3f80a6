"""Hyperparameters in the shapes that loggers need: one dict, flat, and of plain scalars."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "as_mapping",
    "convert_params",
    "flatten_dict",
    "is_array",
    "merge_hparams",
    "qualified_name",
    "sanitize_params",
    "to_scalar",
]


def convert_params(params: Mapping[str, Any] | Namespace | DataclassInstance | None) -> dict[str, Any]:
    """Return hyperparameters as a dict.

    Args:
        params: A mapping, a namespace, a dataclass instance, or `None` for no parameters.

    Returns:
        A new dict; values are not copied.

    Raises:
        TypeError: `params` is something else.
    """
    if params is None:
        return {}
    fields = as_mapping(params)
    if fields is None:
        raise TypeError(
            f"Hyperparameters were given as {type(params).__name__}, which has no names to log them under."
            " Pass a dict, an `argparse.Namespace` or a dataclass instance."
        )
    return dict(fields)


def flatten_dict(params: Mapping[Any, Any], delimiter: str = "/", parent_key: str = "") -> dict[str, Any]:
    """Return a one-level dict of a nested one.

    Args:
        params: Values may be mappings, namespaces and dataclass instances; empty ones are kept as values.
        delimiter: What joins the keys.
        parent_key: Key put in front of all others.

    Returns:
        Joined key to value, e.g. `{"optimizer/lr": 0.1}`.
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{parent_key}{delimiter}{key}" if parent_key else str(key)
        nested = as_mapping(value)
        if nested:
            flat.update(flatten_dict(nested, delimiter, name))
        else:
            flat[name] = value
    return flat


def sanitize_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with each value a bool, int, float or str.

    Args:
        params: One-level dict, as `flatten_dict` returns it.

    Returns:
        Same keys; one-element tensors and arrays become numbers, everything else its text.
    """
    return {name: _sanitize(value) for name, value in params.items()}


def to_scalar(value: Any) -> Any:
    """Return the Python number in a 0-d tensor or a NumPy scalar; anything else unchanged.

    Args:
        value: A metric's value.

    Raises:
        ValueError: A tensor or array has more than one element.
    """
    numel = getattr(value, "numel", None) or getattr(value, "size", None)
    if numel is None or not hasattr(value, "item"):
        return value
    count = numel() if callable(numel) else numel
    if count != 1:
        raise ValueError(
            f"A metric has the shape {tuple(value.shape)}, but a logger's row holds one number per metric."
            " Log a reduced value, e.g. `value.mean()`."
        )
    return value.item()  # sync: the row is written by the host


def is_array(value: Any) -> bool:
    """Tell whether a value is a tensor, an array or a NumPy scalar, and not such a class (`dtype=np.float32`).

    Args:
        value: Any value.
    """
    return not isinstance(value, type) and hasattr(value, "tolist") and hasattr(value, "shape")


def qualified_name(value: Any) -> str:
    """Name of a class or function, or of the class of any other object.

    Args:
        value: The object.

    Returns:
        Module and name, e.g. `"torch.nn.modules.activation.ReLU"`.
    """
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def merge_hparams(
    module_hparams: Mapping[str, Any] | None, datamodule_hparams: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what a run logs as its hyperparameters.

    Args:
        module_hparams: Initial hyperparameters of the module; `None` if it logs none.
        datamodule_hparams: The same of the datamodule.

    Returns:
        Both in one dict, without the class path that command-line tools keep there.

    Raises:
        RuntimeError: Both have a key, with different values.
    """
    module, datamodule = dict(module_hparams or {}), dict(datamodule_hparams or {})
    module.pop("_class_path", None)
    datamodule.pop("_class_path", None)
    clashing = [key for key in module if key in datamodule and not _same(module[key], datamodule[key])]
    if clashing:
        raise RuntimeError(
            f"The hyperparameters {clashing!r} of the LightningModule and the LightningDataModule have the same names"
            " but different values, so they cannot be logged together. Rename them, or call"
            " `save_hyperparameters(ignore=...)` or `save_hyperparameters(logger=False)` in one of the two."
        )
    return {**module, **datamodule}


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """Return the names and values in a mapping, a namespace or a dataclass instance; `None` for anything else.

    Args:
        value: Any value.
    """
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Namespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _sanitize(value: Any) -> bool | int | float | str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (bool, int, float, str)):
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _sanitize(value.item())
    if callable(value) and hasattr(value, "__qualname__"):
        return qualified_name(value)
    return str(value)


def _same(one: Any, other: Any) -> bool:
    """Equality that also answers for tensors, arrays and NaN, alone or nested."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if _is_plain_sequence(one) and _is_plain_sequence(other):
        return len(one) == len(other) and all(map(_same, one, other))
    if is_array(one) and is_array(other):
        return one.shape == other.shape and _same(one.tolist(), other.tolist())
    return bool(one == other) or bool(one != one and other != other)


def _is_plain_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
