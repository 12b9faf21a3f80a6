"""Everything that is decided before a run begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.engine.resolve import explain as explain
    from fulmen.engine.resolve import resolve_strategy as resolve_strategy
    from fulmen.engine.torch_flags import set_torch_flags as set_torch_flags

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "explain": "fulmen.engine.resolve",
        "resolve_strategy": "fulmen.engine.resolve",
        "set_torch_flags": "fulmen.engine.torch_flags",
    },
)
