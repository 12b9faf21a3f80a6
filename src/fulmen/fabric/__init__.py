"""Fabric: the engine under a loop that the user writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric as Fabric
    from fulmen.fabric.wrappers import is_wrapped as is_wrapped

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"Fabric": "fulmen.fabric.fabric", "is_wrapped": "fulmen.fabric.wrappers"}
)
