"""Take nested collections of loaders apart, and put batches together in the same shape."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

__all__ = ["Nesting", "take_apart"]

_PLAIN = (int, float, str)


@dataclass(frozen=True, slots=True)
class Nesting:
    """The shape of a collection.

    Attributes:
        make: Builds the collection from the list of its parts.
        parts: The shape of each part; `None` for a leaf.
    """

    make: Callable[[list[Any]], Any]
    parts: tuple[Nesting | None, ...]

    def build(self, leaves: Iterable[Any]) -> Any:
        """Return a collection of this shape with these leaves."""
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        return self.make([next(leaves) if part is None else part._build(leaves) for part in self.parts])


def take_apart(collection: Any) -> tuple[list[Any], Nesting | None]:
    """Return the leaves of nested dicts, lists, tuples and dataclasses in order, and the shape around them.

    A collection of nothing but numbers and strings is a leaf, and so is anything that is no collection. A dataclass
    that can be iterated is a leaf; its fields with numbers, strings or `None` are kept as they are.

    Args:
        collection: One loader, or a collection of loaders.

    Returns:
        The leaves, and their shape; `None` for the shape if `collection` is itself a leaf.
    """
    if dataclasses.is_dataclass(collection) and not isinstance(collection, type):
        return _take_dataclass_apart(collection)
    opened = _open(collection)
    if opened is None or all(isinstance(part, _PLAIN) for part in opened[0]):
        return [collection], None
    return _take_parts_apart(*opened)


def _take_parts_apart(parts: list[Any], make: Callable[[list[Any]], Any]) -> tuple[list[Any], Nesting]:
    taken = [take_apart(part) for part in parts]
    leaves = [leaf for part_leaves, _ in taken for leaf in part_leaves]
    return leaves, Nesting(make, tuple(shape for _, shape in taken))


def _take_dataclass_apart(instance: Any) -> tuple[list[Any], Nesting | None]:
    names = [field.name for field in dataclasses.fields(instance)]
    names = [name for name in names if not isinstance(getattr(instance, name), (*_PLAIN, type(None)))]
    if isinstance(instance, Iterable) or not names:
        return [instance], None
    return _take_parts_apart([getattr(instance, name) for name in names], partial(_make_dataclass, instance, names))


def _open(collection: Any) -> tuple[list[Any], Callable[[list[Any]], Any]] | None:
    """The parts of one level and what puts them together again; `None` if this is no collection."""
    kind = type(collection)
    if kind is list:
        return list(collection), list
    if kind is tuple:
        return list(collection), tuple
    if isinstance(collection, tuple) and hasattr(kind, "_fields"):
        return list(collection), kind._make
    if kind is dict or kind is OrderedDict:
        return list(collection.values()), partial(_make_mapping, kind, list(collection))
    if kind is defaultdict:
        make_empty: Callable[[Any], Any] = partial(defaultdict, collection.default_factory)
        return list(collection.values()), partial(_make_mapping, make_empty, list(collection))
    return None


def _make_mapping(make: Callable[[Any], Any], keys: list[Any], values: list[Any]) -> Any:
    return make(zip(keys, values, strict=True))


def _make_dataclass(template: Any, names: list[str], values: list[Any]) -> Any:
    made = copy.copy(template)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)  # also works for frozen ones
    return made
