"""Loggers and profilers."""

from __future__ import annotations

__all__ = ["LOGGERS"]

LOGGERS: dict[str, dict[str, str]] = {
    "lightning.pytorch.loggers": {
        "fulmen.loggers.comet": "CometLogger",
        "fulmen.loggers.csv_logs": "CSVLogger",
        "fulmen.loggers.litlogger": "LitLogger",
        "fulmen.loggers.logger": "Logger",
        "fulmen.loggers.mlflow": "MLFlowLogger",
        "fulmen.loggers.tensorboard": "TensorBoardLogger",
        "fulmen.loggers.wandb": "WandbLogger",
    },
    "lightning.pytorch.loggers.comet": {
        "fulmen.compat.logger_constants": "FRAMEWORK_NAME=COMET_FRAMEWORK comet_experiment=COMET_EXPERIMENT",
        "fulmen.loggers.comet": "CometLogger",
    },
    "lightning.pytorch.loggers.csv_logs": {"fulmen.loggers.csv_logs": "CSVLogger ExperimentWriter"},
    "lightning.pytorch.loggers.litlogger": {"fulmen.loggers.litlogger": "LitLogger"},
    "lightning.pytorch.loggers.logger": {
        "fulmen.loggers.logger": "DummyLogger Logger merge_dicts rank_zero_experiment",
    },
    "lightning.pytorch.loggers.mlflow": {
        "fulmen.compat.logger_constants": "LOCAL_FILE_URI_PREFIX=LOCAL_FILE_PREFIX",
        "fulmen.loggers.mlflow": "MLFlowLogger",
    },
    "lightning.pytorch.loggers.neptune": {"fulmen.loggers.neptune": "NeptuneLogger"},
    "lightning.pytorch.loggers.tensorboard": {"fulmen.loggers.tensorboard": "TensorBoardLogger"},
    "lightning.pytorch.loggers.utilities": {"fulmen.compat.saved_files": "_scan_checkpoints=scan_checkpoints"},
    "lightning.pytorch.loggers.wandb": {"fulmen.loggers.wandb": "WandbLogger"},
    "lightning.pytorch.profilers": {
        "fulmen.profilers.advanced": "AdvancedProfiler",
        "fulmen.profilers.base": "PassThroughProfiler",
        "fulmen.profilers.profiler": "Profiler",
        "fulmen.profilers.pytorch": "PyTorchProfiler",
        "fulmen.profilers.simple": "SimpleProfiler",
        "fulmen.profilers.xla": "XLAProfiler",
    },
    "lightning.pytorch.profilers.advanced": {"fulmen.profilers.advanced": "AdvancedProfiler"},
    "lightning.pytorch.profilers.base": {"fulmen.profilers.base": "PassThroughProfiler"},
    "lightning.pytorch.profilers.profiler": {"fulmen.profilers.profiler": "Profiler"},
    "lightning.pytorch.profilers.pytorch": {
        "fulmen.profilers.pytorch": "PyTorchProfiler RegisterRecordFunction ScheduleWrapper",
    },
    "lightning.pytorch.profilers.simple": {"fulmen.profilers.simple": "SimpleProfiler"},
    "lightning.pytorch.profilers.xla": {"fulmen.profilers.xla": "XLAProfiler"},
}
