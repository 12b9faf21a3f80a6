"""Finds out what cannot be pickled, and where it is."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["explain_unpicklable"]

_MOST_OBJECTS = 20_000  # then give up; the search is only for the message


def explain_unpicklable(error: Exception, named: Mapping[str, Any], what: str) -> Exception:
    """Return an error that names the attribute which cannot be pickled.

    Args:
        error: What pickling raised.
        named: Where to look: names, as the user knows them, and objects.
        what: What was to be pickled, for the message.

    Returns:
        A `TypeError` with the path and what to do; `error` itself if nothing is found, e.g. as the disk is full.
    """
    for name, value in named.items():
        found = _find(name, value)
        if found is not None:
            path, culprit = found
            return TypeError(
                f"`{path}` can't be sent to another process: {_words(culprit)}. It is part of {what}, which is pickled"
                f" ({type(error).__name__}: {error}). Use a function or class that is defined at the top level of a"
                " module, create the object later (in `setup` or `configure_model`, which run in the new process), or"
                " choose `strategy='ddp'` or `strategy='ddp_fork'`, which pickle nothing."
            )
    return error


class _NoContent(pickle.Pickler):
    """Pickles without the content of tensors, which can be large and never fails."""

    def reducer_override(self, obj: Any) -> Any:
        if (
            isinstance(obj, (torch.Tensor, torch.UntypedStorage))
            and type(obj).__reduce_ex__ is not object.__reduce_ex__
        ):
            return int, ()
        return NotImplemented


def _is_picklable(value: Any) -> bool:
    try:
        _NoContent(io.BytesIO(), protocol=2).dump(value)
    except Exception:
        return False
    return True


def _find(name: str, value: Any) -> tuple[str, Any] | None:
    """Return the smallest part that cannot be pickled, with its path."""
    if _is_picklable(value):
        return None
    seen = {id(value)}
    path, current = name, value
    while len(seen) < _MOST_OBJECTS:
        for step, part in _parts(current):
            if id(part) not in seen:
                seen.add(id(part))
                if not _is_picklable(part):
                    path, current = f"{path}{step}", part
                    break
        else:
            break
    return path, current


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Return what pickling an object pickles in turn, with the code that leads there."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r}]", item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for idx, item in enumerate(value):
            yield f"[{idx}]", item
    elif getattr(value, "__self__", None) is not None:  # a bound method
        yield "", value.__self__
    elif not callable(value) or hasattr(value, "__dict__"):
        if isinstance(value, nn.Module):
            for key, module in value._modules.items():
                yield f".{key}", module
        yield from _state(value)


def _state(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:
        return
    if not isinstance(reduced, tuple):
        return
    for part in reduced[1:]:
        if isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], dict):
            part = {**(part[0] or {}), **part[1]} if isinstance(part[0], (dict, type(None))) else part
        if isinstance(part, dict):
            for key, item in part.items():
                if not (isinstance(value, nn.Module) and key == "_modules"):
                    yield f".{key}", item
        elif isinstance(part, tuple):
            yield from (("", item) for item in part)
        elif part is not None and hasattr(part, "__next__"):
            yield from (("[...]", item) for item in part)


def _words(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    if name is not None and "<lambda>" in name:
        return "it is a lambda"
    if name is not None and "<locals>" in name:
        return f"`{name}` is defined inside a function"
    kind = type(value)
    if "<locals>" in kind.__qualname__:
        return f"its class `{kind.__qualname__}` is defined inside a function"
    return f"it is a `{kind.__module__}.{kind.__qualname__}`"
