"""Things that can be made by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["Registration", "Registry"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Registration(Generic[T]):
    """How to make one thing: what to call, with which arguments."""

    factory: Callable[..., T]
    description: str
    init_params: dict[str, Any]


class Registry(Generic[T]):
    """Names and how to make what they stand for.

    Args:
        kind: What is registered, one word for messages, e.g. "strategy".

    Example::

        colors = Registry[Color]("color")
        colors.register("red", Color, description="like fire", hue=0)
        red = colors.get("red")
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Registration[T]] = {}

    def register(
        self,
        name: str,
        factory: Callable[..., T] | None = None,
        description: str = "",
        override: bool = False,
        **init_params: Any,
    ) -> Callable[..., Any]:
        """Add a name; without `factory` this is a decorator.

        Args:
            name: The name, used exactly so.
            factory: Class or function that makes the thing.
            description: One line for listings.
            override: Replace an existing entry of that name.
            init_params: Keyword arguments for `factory`.

        Returns:
            `factory`, or the decorator.

        Raises:
            MisconfigurationException: The name is not a string, or taken.
        """
        if not isinstance(name, str):
            raise MisconfigurationException(
                f"The name of a {self.kind} must be a string, but {name!r} is a `{type(name).__name__}`."
                " Pass the name first."
            )
        if name in self._entries and not override:
            raise MisconfigurationException(
                f"The {self.kind} name {name!r} is taken by {self._entries[name].factory!r}."
                " Choose another name or pass `override=True`."
            )

        def add(function: Callable[..., T]) -> Callable[..., T]:
            self._entries[name] = Registration(function, description, init_params)
            return function

        return add if factory is None else add(factory)

    def entry(self, name: str) -> Registration[T]:
        """Return how `name` is made.

        Raises:
            KeyError: No such name.
        """
        if name not in self._entries:
            raise KeyError(f"No {self.kind} is registered as {name!r}. Known: {', '.join(self.names()) or 'none'}.")
        return self._entries[name]

    def get(self, name: str, default: Any = None, **params: Any) -> Any:
        """Make what `name` stands for.

        Args:
            name: A registered name.
            default: What to return if there is no such name; `None`: raise.
            params: Keyword arguments that are added to the registered ones, or replace them.

        Returns:
            A new object, or `default`.

        Raises:
            KeyError: No such name, and no default.
        """
        if default is not None and name not in self:
            return default
        found = self.entry(name)
        return found.factory(**{**found.init_params, **params})

    def remove(self, name: str) -> None:
        """Forget a name.

        Raises:
            KeyError: No such name.
        """
        self.entry(name)
        del self._entries[name]

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        """Tell whether a name is registered."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in order of registration."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._entries)

    def __str__(self) -> str:
        """List the registered names."""
        return f"Registered {self.kind} names: {', '.join(self.names()) or 'none'}"
