"""The Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer as Trainer
    from fulmen.utilities.seed import seed_everything as seed_everything

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Trainer": "fulmen.trainer.trainer",
        "seed_everything": "fulmen.utilities.seed",
    },
)
