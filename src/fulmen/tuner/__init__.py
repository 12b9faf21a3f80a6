"""Settings found by trying: the learning rate and the batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.tuner.lr_finder import LRFinder as LRFinder
    from fulmen.tuner.tuner import Tuner as Tuner

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"LRFinder": "fulmen.tuner.lr_finder", "Tuner": "fulmen.tuner.tuner"}
)
