"""How packages add classes to a registry, and callbacks to all runs."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.registry import AcceleratorNames

__all__ = ["call_register_accelerators", "load_external_callbacks", "register_classes"]


def register_classes(registry: Any, method: str, module: ModuleType, parent: type[object]) -> None:
    """Let the classes of a module enter themselves in a registry.

    Args:
        registry: The registry.
        method: Name of the class method that does it; classes that only inherit it from `parent` are left out.
        module: Where the classes are.
        parent: What they are derived from.
    """
    for _, member in inspect.getmembers(module, inspect.isclass):
        if issubclass(member, parent) and _function(member, method) is not _function(parent, method):
            getattr(member, method)(registry)


def _function(cls: type[object], method: str) -> Any:
    return getattr(getattr(cls, method), "__func__", None)


def call_register_accelerators(registry: AcceleratorNames, base_module: str) -> None:
    """Let the accelerators of a module enter themselves.

    Args:
        registry: The registry.
        base_module: Name of the module.
    """
    register_classes(registry, "register_accelerators", importlib.import_module(base_module), Accelerator)


def load_external_callbacks(group: str) -> list[Any]:
    """Make the callbacks that installed packages add.

    Args:
        group: The group of entry points; each is a function that returns a callback or a list of them.

    Returns:
        All callbacks.
    """
    callbacks: list[Any] = []
    for point in entry_points(group=group):
        made = point.load()()
        callbacks.extend(made if isinstance(made, list) else [made])
    return callbacks
