"""Where metrics, hyperparameters and graphs of a run go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.loggers.csv_logs import CSVLogger as CSVLogger
    from fulmen.loggers.logger import DummyLogger as DummyLogger
    from fulmen.loggers.logger import Logger as Logger
    from fulmen.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CSVLogger": "fulmen.loggers.csv_logs",
        "DummyLogger": "fulmen.loggers.logger",
        "Logger": "fulmen.loggers.logger",
        "TensorBoardLogger": "fulmen.loggers.tensorboard",
    },
)
