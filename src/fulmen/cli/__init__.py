"""Commands of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.cli.command import main as main

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"main": "fulmen.cli.command"})
