"""The classes that can be chosen by their short names."""

from __future__ import annotations

import importlib

__all__ = ["import_choices"]

_PACKAGES = (
    "fulmen.accelerators",
    "fulmen.callbacks",
    "fulmen.cli",
    "fulmen.loggers",
    "fulmen.plugins",
    "fulmen.profilers",
    "fulmen.strategies",
)


def import_choices() -> None:
    """Import the package's callbacks, loggers and so on: only classes that are imported have a short name."""
    for name in _PACKAGES:
        package = importlib.import_module(name)
        for exported in package.__all__:
            getattr(package, exported)
