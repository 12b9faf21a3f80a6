"""Train PyTorch models without writing the loop."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports
from fulmen.utilities.log_output import show_records

if TYPE_CHECKING:
    from fulmen.core.callback import Callback as Callback
    from fulmen.core.datamodule import LightningDataModule as LightningDataModule
    from fulmen.core.module import LightningModule as LightningModule
    from fulmen.fabric.fabric import Fabric as Fabric
    from fulmen.trainer.trainer import Trainer as Trainer
    from fulmen.utilities.seed import seed_everything as seed_everything

__version__ = "0.1.0"

show_records(logging.getLogger(__name__))

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Callback": "fulmen.core.callback",
        "Fabric": "fulmen.fabric.fabric",
        "LightningDataModule": "fulmen.core.datamodule",
        "LightningModule": "fulmen.core.module",
        "Trainer": "fulmen.trainer.trainer",
        "seed_everything": "fulmen.utilities.seed",
    },
)
