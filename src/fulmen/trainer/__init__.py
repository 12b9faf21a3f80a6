"""The Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.trainer.cross_validation import CrossValidation as CrossValidation
    from fulmen.trainer.cross_validation import CrossValidationResult as CrossValidationResult
    from fulmen.trainer.cross_validation import Fold as Fold
    from fulmen.trainer.trainer import Trainer as Trainer
    from fulmen.utilities.seed import seed_everything as seed_everything

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CrossValidation": "fulmen.trainer.cross_validation",
        "CrossValidationResult": "fulmen.trainer.cross_validation",
        "Fold": "fulmen.trainer.cross_validation",
        "Trainer": "fulmen.trainer.trainer",
        "seed_everything": "fulmen.utilities.seed",
    },
)
