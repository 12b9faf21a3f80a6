"""Where metrics, hyperparameters and graphs of a run go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.loggers.aim import AimLogger as AimLogger
    from fulmen.loggers.clearml import ClearMLLogger as ClearMLLogger
    from fulmen.loggers.comet import CometLogger as CometLogger
    from fulmen.loggers.csv_logs import CSVLogger as CSVLogger
    from fulmen.loggers.dvclive import DVCLiveLogger as DVCLiveLogger
    from fulmen.loggers.json_lines import JSONLogger as JSONLogger
    from fulmen.loggers.litlogger import LitLogger as LitLogger
    from fulmen.loggers.logger import DummyLogger as DummyLogger
    from fulmen.loggers.logger import Logger as Logger
    from fulmen.loggers.mlflow import MLFlowLogger as MLFlowLogger
    from fulmen.loggers.neptune import NeptuneLogger as NeptuneLogger
    from fulmen.loggers.swanlab import SwanLabLogger as SwanLabLogger
    from fulmen.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger
    from fulmen.loggers.trackio import TrackioLogger as TrackioLogger
    from fulmen.loggers.wandb import WandbLogger as WandbLogger

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AimLogger": "fulmen.loggers.aim",
        "CSVLogger": "fulmen.loggers.csv_logs",
        "ClearMLLogger": "fulmen.loggers.clearml",
        "CometLogger": "fulmen.loggers.comet",
        "DVCLiveLogger": "fulmen.loggers.dvclive",
        "DummyLogger": "fulmen.loggers.logger",
        "JSONLogger": "fulmen.loggers.json_lines",
        "LitLogger": "fulmen.loggers.litlogger",
        "Logger": "fulmen.loggers.logger",
        "MLFlowLogger": "fulmen.loggers.mlflow",
        "NeptuneLogger": "fulmen.loggers.neptune",
        "SwanLabLogger": "fulmen.loggers.swanlab",
        "TensorBoardLogger": "fulmen.loggers.tensorboard",
        "TrackioLogger": "fulmen.loggers.trackio",
        "WandbLogger": "fulmen.loggers.wandb",
    },
)
