"""Loggers and profilers."""

from __future__ import annotations

__all__ = ["LOGGERS"]

LOGGERS: dict[str, dict[str, str]] = {
    "lightning.pytorch.loggers": {
        "fulmen.loggers.csv_logs": "CSVLogger",
        "fulmen.loggers.logger": "Logger",
        "fulmen.loggers.tensorboard": "TensorBoardLogger",
    },
    "lightning.pytorch.loggers.csv_logs": {"fulmen.loggers.csv_logs": "CSVLogger ExperimentWriter"},
    "lightning.pytorch.loggers.logger": {
        "fulmen.loggers.logger": "DummyLogger Logger merge_dicts rank_zero_experiment",
    },
    "lightning.pytorch.loggers.tensorboard": {"fulmen.loggers.tensorboard": "TensorBoardLogger"},
    "lightning.pytorch.profilers": {
        "fulmen.profilers.advanced": "AdvancedProfiler",
        "fulmen.profilers.base": "PassThroughProfiler",
        "fulmen.profilers.profiler": "Profiler",
        "fulmen.profilers.pytorch": "PyTorchProfiler",
        "fulmen.profilers.simple": "SimpleProfiler",
    },
    "lightning.pytorch.profilers.advanced": {"fulmen.profilers.advanced": "AdvancedProfiler"},
    "lightning.pytorch.profilers.base": {"fulmen.profilers.base": "PassThroughProfiler"},
    "lightning.pytorch.profilers.profiler": {"fulmen.profilers.profiler": "Profiler"},
    "lightning.pytorch.profilers.pytorch": {
        "fulmen.profilers.pytorch": "PyTorchProfiler RegisterRecordFunction ScheduleWrapper",
    },
    "lightning.pytorch.profilers.simple": {"fulmen.profilers.simple": "SimpleProfiler"},
}
