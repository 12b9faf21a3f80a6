"""Turn settings into data that torch reads back without running code (`weights_only=True`)."""

from __future__ import annotations

import io
import os
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn

__all__ = ["NotPlainError", "PlainSettings", "explain_refusal", "split_settings", "to_plain"]

# what torch reads with `weights_only=True` in a process that allowed nothing more
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
_TORCH_PLAIN = (torch.Size, torch.dtype, torch.device, torch.layout)
_TENSORS = (torch.Tensor, nn.Parameter)
_COLLECTIONS = (list, tuple, set)


class NotPlainError(TypeError):
    """A value has no plain form."""


@dataclass(slots=True)
class PlainSettings:
    """Settings by how they can be stored."""

    plain: dict[str, Any] = field(default_factory=dict)
    """Name to plain value; loads with `weights_only=True`."""
    pickled: dict[str, bytes] = field(default_factory=dict)
    """Name to the pickled exact value, where `plain` lacks it or holds another type, e.g. `str` for a path."""
    left_out: list[str] = field(default_factory=list)
    """Names that are not in `plain`."""
    lost: list[str] = field(default_factory=list)
    """Those of `left_out` that cannot even be pickled."""


def split_settings(settings: Mapping[str, Any]) -> PlainSettings:
    """Sort settings into plain data and the rest, which is pickled.

    Args:
        settings: Name to any value; not modified.

    Returns:
        What can be stored in which way.
    """
    result = PlainSettings()
    for name, value in settings.items():
        try:
            plain = to_plain(value)
        except NotPlainError:
            result.left_out.append(name)
        else:
            result.plain[name] = plain
            if _same_types(plain, value):
                continue
        pickled = _pickled(value)
        if pickled is not None:
            result.pickled[name] = pickled
        elif name in result.left_out:
            result.lost.append(name)
    return result


def to_plain(value: Any) -> Any:
    """Return `value` as plain data: numbers, strings, tensors and builtin collections of them.

    Mappings become dicts; namespaces too; paths become `str`; enum members, NumPy scalars and subclasses of
    numbers and `str` become the number or string that they stand for.

    Args:
        value: Any object.

    Raises:
        NotPlainError: There is no such form, e.g. for a module, a function or a class.
    """
    if type(value) in (*_PLAIN, *_TORCH_PLAIN, *_TENSORS):
        return value
    if type(value) in _COLLECTIONS:
        return type(value)(to_plain(item) for item in value)
    if isinstance(value, Mapping):
        kind = OrderedDict if type(value) is OrderedDict else dict
        return kind((to_plain(key), to_plain(item)) for key, item in value.items())
    if isinstance(value, Namespace):
        return to_plain(vars(value))
    return _number_or_text(value)


def _number_or_text(value: Any) -> Any:
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    for base in (int, float, complex, str, bytes, bytearray):
        if isinstance(value, base):
            return base(value)  # type: ignore[arg-type]  # `value` is of this very kind
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return to_plain(value.item())
    raise NotPlainError(
        f"{type(value).__module__}.{type(value).__qualname__} has no form that loads with `weights_only=True`."
    )


def _pickled(value: Any) -> bytes | None:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception:  # whatever a user's `__reduce__` raises, it cannot be stored
        return None
    return buffer.getvalue()


def _same_types(plain: Any, value: Any) -> bool:
    if type(plain) is not type(value):
        return False
    if isinstance(plain, Mapping):
        return all(_same_types(item, value.get(key)) for key, item in plain.items())
    if type(plain) in (list, tuple):
        return all(map(_same_types, plain, value))
    return type(plain) is not set or plain == value


_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")


def explain_refusal(error: pickle.UnpicklingError, path: object) -> pickle.UnpicklingError:
    """Return an error that says which object torch refused to load with `weights_only=True`, and what to do.

    Args:
        error: What `torch.load` raised.
        path: The file, for the message.
    """
    found = _REFUSED.search(str(error))
    what = f"an object of type `{found.group(1)}`" if found else "an object"
    name = found.group(1).rpartition(".")[2] if found else "TheClass"
    return pickle.UnpicklingError(
        f"The checkpoint `{path}` holds {what}, which is not plain data: loading it can run any code, so it is refused."
        " If you trust the source of the file, pass `weights_only=False`; to allow just this type, call"
        f" `torch.serialization.add_safe_globals([{name}])` before. torch says: {str(error).splitlines()[0]}"
    )
