"""Batches and other nested collections: convert them, move them, measure them."""

from __future__ import annotations

import copy
import dataclasses
import sys
from abc import ABC
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import WarningCache

__all__ = [
    "BType",
    "apply_to_collection",
    "apply_to_collections",
    "convert_tensors_to_scalars",
    "convert_to_tensors",
    "extract_batch_size",
    "move_data_to_device",
]

T = TypeVar("T")
BType: TypeAlias = Tensor | str | Mapping[Any, "BType"] | Iterable["BType"]
"""A batch: tensors and text, nested in collections."""

_LEAF_SEQUENCES = (str, bytes, bytearray, memoryview, range)
_warnings = WarningCache()


def apply_to_collection(
    data: Any,
    dtype: type | tuple[type, ...],
    function: Callable[..., Any],
    *args: Any,
    wrong_dtype: type | tuple[type, ...] | None = None,
    include_none: bool = True,
    **kwargs: Any,
) -> Any:
    """Apply a function to all objects of a type in a nested collection.

    Args:
        data: Mappings, named tuples, sequences and dataclasses, nested as you like. It is not modified.
        dtype: The type (or types) of the objects that `function` gets.
        function: Called as `function(object, *args, **kwargs)`; an object that matches is not entered.
        args: Further positional arguments of `function`.
        wrong_dtype: Objects of this type (or types) are left alone although they match `dtype`.
        include_none: False leaves out entries whose result is `None` (in dataclasses: leaves them as they are).
        kwargs: Further keyword arguments of `function`.

    Returns:
        A collection of the same types with the results in place.

    Example::

        halves = apply_to_collection({"a": [torch.ones(2)]}, torch.Tensor, torch.Tensor.half)
    """

    def convert(item: Any) -> Any:
        if isinstance(item, dtype) and not (wrong_dtype is not None and isinstance(item, wrong_dtype)):
            return function(item, *args, **kwargs)
        return _rebuild(item, convert, include_none)

    return convert(data)


def _rebuild(item: Any, convert: Callable[[Any], Any], include_none: bool) -> Any:
    """The same collection with its entries converted; what is not a collection comes back as it is."""
    if isinstance(item, Mapping):
        pairs = ((key, convert(value)) for key, value in item.items())
        return _like_mapping(item, {key: value for key, value in pairs if include_none or value is not None})
    if isinstance(item, Sequence) and not isinstance(item, _LEAF_SEQUENCES):
        results = [convert(value) for value in item]
        if _is_namedtuple(item):
            return type(item)(*results)  # every field needs a value
        return _like_sequence(item, results if include_none else [value for value in results if value is not None])
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return _convert_fields(item, convert, include_none)
    return item


def _like_mapping(item: Mapping[Any, Any], entries: dict[Any, Any]) -> Any:
    kind: Any = type(item)
    if kind is dict:
        return entries
    return kind(item.default_factory, entries) if isinstance(item, defaultdict) else kind(entries)


def _like_sequence(item: Sequence[Any], entries: list[Any]) -> Any:
    kind: Any = type(item)
    return entries if kind is list else kind(entries)


def _is_namedtuple(item: object) -> bool:
    return isinstance(item, tuple) and hasattr(item, "_fields") and hasattr(item, "_asdict")


def _convert_fields(item: Any, convert: Callable[[Any], Any], include_none: bool) -> Any:
    result = copy.copy(item)
    for field in dataclasses.fields(item):
        if hasattr(item, field.name):
            value = convert(getattr(item, field.name))
            if include_none or value is not None:
                object.__setattr__(result, field.name, value)  # frozen ones too: nobody has seen the copy yet
    return result


def apply_to_collections(
    data1: Any,
    data2: Any,
    dtype: type | tuple[type, ...],
    function: Callable[..., Any],
    *args: Any,
    wrong_dtype: type | tuple[type, ...] | None = None,
    **kwargs: Any,
) -> Any:
    """Apply a function to pairs of objects at the same place in two collections of the same structure.

    Args:
        data1: The collection that says which objects match; `None` leaves the role to `data2`.
        data2: The other collection, or `None`.
        dtype: The type (or types) of the objects of `data1`.
        function: Called as `function(object1, object2, *args, **kwargs)`, with `object1` alone if `data2` is `None`.
        args: Further positional arguments of `function`.
        wrong_dtype: Objects of this type (or types) are left alone although they match `dtype`.
        kwargs: Further keyword arguments of `function`.

    Returns:
        A collection like `data1` with the results in place.

    Raises:
        ValueError: The collections differ in structure.
    """
    if data1 is None:
        data1, data2 = data2, None
    if data2 is None:
        return apply_to_collection(data1, dtype, function, *args, wrong_dtype=wrong_dtype, **kwargs)

    def convert(one: Any, two: Any) -> Any:
        if isinstance(one, dtype) and not (wrong_dtype is not None and isinstance(one, wrong_dtype)):
            return function(one, two, *args, **kwargs)
        others = _entries(two, like=one)
        return _rebuild(one, lambda value: convert(value, next(others)), include_none=True)

    return convert(data1, data2)


def _entries(other: Any, *, like: Any) -> Iterator[Any]:
    """The entries of `other` in the order in which `_rebuild` visits those of `like`."""
    if isinstance(like, Mapping):
        fits = isinstance(other, Mapping) and like.keys() == other.keys()
        found = [other[key] for key in like] if fits else []
    elif isinstance(like, Sequence) and not isinstance(like, _LEAF_SEQUENCES):
        fits = isinstance(other, Sequence) and len(like) == len(other)
        found = list(other) if fits else []
    elif dataclasses.is_dataclass(like) and not isinstance(like, type):
        fits = type(like) is type(other)
        names = [field.name for field in dataclasses.fields(like) if hasattr(like, field.name)]
        found = [getattr(other, name) for name in names] if fits else []
    else:
        return iter(())
    if not fits:
        raise ValueError(
            f"The two collections differ in structure: {like!r} against {other!r}."
            " Pass collections with the same keys and lengths."
        )
    return iter(found)


class _Movable(ABC):  # noqa: B024 - a question to `isinstance`, nobody inherits from it
    """Anything with a method `to`."""

    @classmethod
    def __subclasshook__(cls, subclass: type) -> bool:
        return callable(getattr(subclass, "to", None))


def move_data_to_device(batch: Any, device: torch.device | str | int) -> Any:
    """Move everything in a batch that has a method `to`.

    Tensors are copied without blocking, except to the CPU and to MPS, where an unfinished copy could be read.

    Args:
        batch: Tensors and other movable objects, nested in collections (see `apply_to_collection`).
        device: Where to.

    Returns:
        The batch with its tensors on `device`; a tensor that is there already is not copied.
    """
    if not isinstance(device, torch.device):
        device = torch.device(device)
    return _move(batch, device)


def _move(data: Any, device: torch.device) -> Any:
    kind = type(data)  # exact types: this runs for every batch
    if kind is Tensor:
        return data if data.device == device else data.to(device, non_blocking=device.type not in ("cpu", "mps"))
    if kind is list:
        return [_move(item, device) for item in data]
    if kind is tuple:
        return tuple([_move(item, device) for item in data])
    if kind is dict:
        return {key: _move(value, device) for key, value in data.items()}
    return apply_to_collection(data, _Movable, _move_object, device)


def _move_object(item: Any, device: torch.device) -> Any:
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=device.type not in ("cpu", "mps"))
    moved = item.to(device)
    return item if moved is None else moved  # a `to` that works in place and returns nothing


def extract_batch_size(batch: BType) -> int:
    """Find the number of samples in a batch: the first dimension of its first tensor.

    The batch is searched depth first through mappings, iterables and dataclasses. Tensors of different lengths warn
    once; the first counts.

    Args:
        batch: The batch.

    Returns:
        The batch size; 1 if the first tensor has no dimensions.

    Raises:
        MisconfigurationException: There is no tensor.
    """
    if type(batch) is Tensor:
        return batch.size(0) if batch.dim() else 1
    first = None
    for size in _sizes(batch):
        if first is None:
            first = size
        elif size != first:
            _warnings.warn(
                f"The batch holds tensors of different lengths, so its size is ambiguous; the first, {first}, is taken"
                " as the weight of logged means. Pass `self.log(..., batch_size=...)` if this is wrong.",
                stacklevel=6,
            )
            break
    if first is None:
        raise MisconfigurationException(
            f"The batch size cannot be inferred from a `{type(batch).__name__}` without tensors, but the mean over the"
            " epoch needs it. Pass `self.log(..., batch_size=...)`."
        )
    return first


def _sizes(data: Any) -> Iterator[int]:
    if isinstance(data, Tensor):
        yield data.size(0) if data.dim() else 1
    else:
        for item in _children(data):
            if type(item) is Tensor:
                yield item.size(0) if item.dim() else 1
            else:
                yield from _sizes(item)


def _children(data: Any) -> Iterable[Any]:
    if isinstance(data, Mapping):
        return data.values()
    if isinstance(data, (list, tuple)):
        return data
    # strings hold strings, arrays hold no tensors, and an iterator would be used up
    if isinstance(data, Iterable) and not isinstance(data, (*_LEAF_SEQUENCES, Iterator)):
        return () if hasattr(data, "__array__") else data
    if dataclasses.is_dataclass(data):
        return [getattr(data, field.name, None) for field in dataclasses.fields(data)]
    return ()


def convert_tensors_to_scalars(data: Any) -> Any:
    """Replace every tensor in a collection by its Python number.

    Args:
        data: The collection; every tensor must have one element. Each tensor on a device costs one synchronization.

    Returns:
        The collection with numbers.

    Raises:
        ValueError: A tensor does not have exactly one element.
    """
    return apply_to_collection(data, Tensor, _to_scalar)


def _to_scalar(value: Tensor) -> int | float | bool | complex:
    if value.numel() != 1:
        raise ValueError(
            f"The metric `{value}` has {value.numel()} elements and does not contain a single element, so it cannot"
            " become a number. Reduce it first, e.g. with `.mean()`."
        )
    return value.item()  # sync: a number is what the caller asks for


def convert_to_tensors(data: Any, device: torch.device) -> Any:
    """Replace numbers and NumPy arrays in a collection by tensors, and move all tensors to a device.

    Args:
        data: The collection.
        device: Where to.

    Returns:
        The collection with tensors: bool becomes uint8, int int32, float float32; arrays keep their type.
    """
    numpy = sys.modules.get("numpy")  # if it is not imported there are no arrays
    if numpy is not None:
        data = apply_to_collection(data, numpy.ndarray, torch.from_numpy)
    data = apply_to_collection(data, (bool, int, float), _number_to_tensor, device)
    return move_data_to_device(data, device)


def _number_to_tensor(value: bool | int | float, device: torch.device) -> Tensor:
    if isinstance(value, bool):
        return torch.tensor(value, dtype=torch.uint8, device=device)
    return torch.tensor(value, dtype=torch.int32 if isinstance(value, int) else torch.float32, device=device)
