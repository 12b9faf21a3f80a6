"""What loggers share that write rows of metrics to a file of the run's folder."""

from __future__ import annotations

import os
import time
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from fulmen.loggers.logger import rank_zero_experiment
from fulmen.loggers.versioned import VersionedLogger
from fulmen.utilities.files import ensure_writable
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["RowLogger"]

_FOLLOW_S = 5.0  # rows older than this are written at the next one, so that a person can watch the file


class _RowWriter(Protocol):
    """Writes the files of one run."""

    num_rows: int  # in the file

    @property
    def num_buffered(self) -> int: ...

    @property
    def has_unsaved(self) -> bool: ...

    def log_metrics(self, metrics: Mapping[str, Any], /, step: int | None) -> None: ...

    def save(self) -> None: ...

    def go_back(self, num_rows: int) -> None: ...

    def begin_anew(self) -> None: ...


_Writer = TypeVar("_Writer", bound=_RowWriter)


class RowLogger(VersionedLogger, Generic[_Writer]):
    """Base of loggers whose rows are buffered, appended to a file, and taken back when a run resumes.

    Args:
        save_dir: Where all experiments are kept.
        name: Folder of the experiment; `None` or an empty string for none.
        version: Number or name of the run's folder; `None` takes the next free number at first use.
        prefix: Put in front of every metric's name, joined by `-`.
        flush_logs_every_n_steps: How many rows are buffered.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None,
        version: int | str | None,
        prefix: str,
        flush_logs_every_n_steps: int,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        self._experiment: _Writer | None = None
        self._saved_at_s = 0.0

    @abstractmethod
    def _open(self, log_dir: str) -> _Writer:
        """Begin to write in the folder of the run."""

    @property
    @rank_zero_experiment
    def experiment(self) -> _Writer:
        """The writer of this run's files; the first use makes the folder."""
        if self._experiment is None:
            log_dir = self.log_dir
            ensure_writable(log_dir)
            self._experiment = self._open(log_dir)
            self._saved_at_s = time.monotonic()
            weakref.finalize(self, _save_at_exit, self._experiment, os.getpid())
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add a row.

        Args:
            metrics: Metric name to number, one-element tensor or NumPy scalar.
            step: The row's `step`; `None` takes a metric called `step`, or else the number after the last row's.

        Raises:
            ValueError: A value has more than one element.
        """
        writer = self._experiment or self.experiment
        writer.log_metrics(self._prefixed(metrics), step)
        if writer.num_buffered >= self._flush_logs_every_n_steps or time.monotonic() - self._saved_at_s >= _FOLLOW_S:
            self.save()

    def position(self) -> dict[str, Any]:
        """Return the number of rows, buffered ones included."""
        if self._experiment is None:
            return {}
        rows = self._experiment.num_rows + self._experiment.num_buffered
        return {"log_dir": self.log_dir, "rows": rows, "media": self.media.num_lines}

    @rank_zero_only
    def resume_at(self, position: dict[str, Any]) -> None:
        """Take back the rows after a checkpoint of a run in the same folder.

        Args:
            position: What `position` returned when the checkpoint was written.
        """
        if self._is_here(position):
            self.experiment.go_back(int(position["rows"]))
            self.media.go_back(int(position.get("media", -1)))

    @rank_zero_only
    def begin_anew(self) -> None:
        """Begin an empty file of metrics; one of an earlier attempt is kept beside it, with the ending `.bak`."""
        self.experiment.begin_anew()
        self.media.go_back(0)

    @rank_zero_only
    def save(self) -> None:
        """Write the buffered rows, and what else is known of the run if it changed."""
        if self._experiment is not None:
            self._experiment.save()
            self._saved_at_s = time.monotonic()


def _save_at_exit(writer: _RowWriter, owner_pid: int) -> None:
    """Keep the last rows of a program that ends without `finalize`; forked children leave them to their owner."""
    if os.getpid() == owner_pid and writer.has_unsaved:
        writer.save()
