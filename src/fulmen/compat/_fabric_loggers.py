"""Loggers as `lightning.fabric.loggers` has them: their first argument is `root_dir`."""

from __future__ import annotations

import os
from typing import Any

from fulmen.compat.other_name import OtherName
from fulmen.loggers import csv_logs, tensorboard

__all__ = ["CSVLogger", "TensorBoardLogger"]


class CSVLogger(csv_logs.CSVLogger, metaclass=OtherName):
    """As `fulmen.loggers.CSVLogger`.

    Args:
        root_dir: Where all experiments are kept.
        name: Folder of the experiment.
        version: Number or name of the run's folder; the next free number by default.
        prefix: Put in front of every metric's name.
        flush_logs_every_n_steps: How many rows are buffered.
    """

    is_other_name = True

    def __init__(
        self,
        root_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(root_dir, name, version, prefix, flush_logs_every_n_steps)


class TensorBoardLogger(tensorboard.TensorBoardLogger, metaclass=OtherName):
    """As `fulmen.loggers.TensorBoardLogger`.

    Args:
        root_dir: Where all experiments are kept.
        name: Folder of the experiment.
        version: Number or name of the run's folder; the next free number by default.
        default_hp_metric: Log `hp_metric = -1` with hyperparameters that come without metrics.
        prefix: Put in front of every metric's name.
        sub_dir: Folder inside the version's folder.
        kwargs: Further arguments of `SummaryWriter`.
    """

    is_other_name = True

    def __init__(
        self,
        root_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root_dir, name, version, default_hp_metric=default_hp_metric, prefix=prefix, sub_dir=sub_dir, **kwargs
        )
