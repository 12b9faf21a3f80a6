"""Modules that answer requests, and a check before training that they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.serve.servable_module import ServableModule as ServableModule
    from fulmen.serve.validator import ServableModuleValidator as ServableModuleValidator

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ServableModule": "fulmen.serve.servable_module",
        "ServableModuleValidator": "fulmen.serve.validator",
    },
)
