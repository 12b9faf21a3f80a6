"""Objects whose methods `Fabric.call` calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["all_callbacks", "call_each"]

_ENTRY_POINT_GROUPS = ("fulmen.fabric.callbacks_factory", "lightning.fabric.callbacks_factory")


def all_callbacks(given: Any) -> list[Any]:
    """Return the callbacks given, in a new list, and those that installed packages add.

    Args:
        given: A callback, several, or `None`.
    """
    callbacks = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    installed = entry_points()
    for factory in [found for group in _ENTRY_POINT_GROUPS for found in installed.select(group=group)]:
        made = factory.load()()
        callbacks.extend(made if isinstance(made, list) else [made])
    return callbacks


def call_each(callbacks: Iterable[Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call a method of each callback that has it.

    Args:
        callbacks: The callbacks.
        name: Name of the method.
        args: Passed by position.
        kwargs: Passed by name, to methods that take that name.
    """
    for callback in callbacks:
        method = getattr(callback, name, None)
        if method is None:
            continue
        if not callable(method):
            rank_zero_warn(
                f"Skipping the callback `{type(callback).__name__}.{name}` because it is not callable.", stacklevel=5
            )
        elif kwargs:
            method(*args, **_accepted(method, kwargs))
        else:
            method(*args)


def _accepted(method: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(method).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in parameters}
