"""Constants that programs import from the modules of loggers."""

from __future__ import annotations

from typing import TypeAlias, Union

__all__ = ["COMET_EXPERIMENT", "COMET_FRAMEWORK", "LOCAL_FILE_PREFIX"]

COMET_FRAMEWORK = "pytorch-lightning"  # under which Comet files the runs of Lightning programs
COMET_EXPERIMENT: TypeAlias = Union[  # names, as the package is optional
    "comet_ml.Experiment", "comet_ml.ExistingExperiment", "comet_ml.OfflineExperiment"  # type: ignore[name-defined]  # noqa: F821
]
LOCAL_FILE_PREFIX = "file:"  # of the address of an MLflow store that is a folder
