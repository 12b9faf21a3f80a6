"""`trainer.report()`: the report of a run, from its folder or from what the Trainer has in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fulmen.loggers.params import convert_params
from fulmen.loggers.versioned import VersionedLogger
from fulmen.reports.metrics_files import curves_of_rows
from fulmen.reports.page import DEFAULT_NAME, write_report
from fulmen.reports.run_folder import RunContents, flatten, read_run
from fulmen.utilities.files import is_local

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["report_on"]


def report_on(trainer: Trainer, path: str | os.PathLike[str] | None) -> Path:
    """Write the report of the runs of a Trainer.

    Args:
        trainer: The Trainer, in or after a run.
        path: The HTML file; `report.html` in `log_dir` by default.

    Returns:
        The path of the file.

    Raises:
        ValueError: There is nothing to report on, or `log_dir` is on an object store and no path is given.
    """
    folder = trainer.log_dir or trainer.default_root_dir
    if path is None:
        if not is_local(folder):
            raise ValueError(
                f"`trainer.report()` writes a local file, but `trainer.log_dir` is {folder!r}. Pass `path=...`."
            )
        path = Path(folder) / DEFAULT_NAME
    return write_report(_contents(trainer), path)


def _contents(trainer: Trainer) -> RunContents:
    for logger in trainer.loggers:
        logger.save()
    for folder in _folders(trainer):
        try:
            run = read_run(folder)
        except (OSError, ValueError):  # nothing was logged there yet
            continue
        if run.curves:
            return run
    run = RunContents(name=Path(trainer.log_dir or ".").name)
    run.curves, _, run.last_epoch = curves_of_rows(trainer.history.rows())
    run.runs = list(trainer.notes.runs)
    run.hparams = list(_hparams(trainer))
    if not run.curves and not run.runs:
        raise ValueError(
            "`trainer.report()` has nothing to report on: nothing was run with this Trainer. Call `fit` first."
        )
    return run


def _folders(trainer: Trainer) -> Iterator[str]:
    for logger in trainer.loggers:
        if isinstance(logger, VersionedLogger) and is_local(logger.log_dir):
            yield logger.log_dir


def _hparams(trainer: Trainer) -> Iterator[tuple[str, str]]:
    for owner in (trainer.lightning_module, trainer.datamodule):
        if owner is not None:
            yield from flatten(convert_params(owner.hparams_initial))
