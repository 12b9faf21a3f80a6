"""What users write: modules, datamodules and callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.core.callback import Callback as Callback
    from fulmen.core.datamodule import LightningDataModule as LightningDataModule
    from fulmen.core.module import LightningModule as LightningModule

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Callback": "fulmen.core.callback",
        "LightningDataModule": "fulmen.core.datamodule",
        "LightningModule": "fulmen.core.module",
    },
)
