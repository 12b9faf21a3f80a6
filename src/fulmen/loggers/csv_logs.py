"""Metrics as rows of a CSV file."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from fulmen.loggers.hparams_file import write_hparams
from fulmen.loggers.params import convert_params, to_scalar
from fulmen.loggers.row_logger import RowLogger
from fulmen.loggers.text_file import append_text, make_folder, read_text, replace_text
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["CSVLogger", "ExperimentWriter"]


class ExperimentWriter:
    """Writes `metrics.csv` and `hparams.yaml` of one run.

    Rows are buffered until `save`, then appended. The file has one sorted set of columns, `step` among them; it is
    written anew, as a whole, only when a metric appears that it has no column for. A `metrics.csv` that is there
    already is continued.

    Args:
        log_dir: Folder of the run; made if absent.
    """

    NAME_HPARAMS_FILE = "hparams.yaml"
    NAME_METRICS_FILE = "metrics.csv"

    def __init__(self, log_dir: str) -> None:
        make_folder(log_dir)
        self.log_dir = log_dir
        self.hparams: dict[str, Any] = {}
        self.metrics: list[dict[str, Any]] = []  # rows not yet written
        self.metrics_file_path = os.path.join(log_dir, self.NAME_METRICS_FILE)
        self.hparams_file_path = os.path.join(log_dir, self.NAME_HPARAMS_FILE)
        self.metrics_keys: list[str] = []  # columns of the file
        self.num_rows = 0  # in the file
        self._next_step = 0
        self._continues = False  # rows of an earlier run, and nobody was told
        self._unterminated = False
        self._hparams_changed = False
        self._continue_existing_file()

    @property
    def num_buffered(self) -> int:
        """How many rows are not yet written."""
        return len(self.metrics)

    @property
    def has_unsaved(self) -> bool:
        """Whether there are rows that would be lost."""
        return bool(self.metrics)

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """Add hyperparameters; they are written at the next `save`.

        Args:
            params: Name to value.
        """
        self.hparams.update(params)
        self._hparams_changed = True

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; it is written at the next `save`.

        Args:
            metrics_dict: Metric name to number, one-element tensor or NumPy scalar.
            step: Its `step` column. `None` takes a metric called `step`, or else the number after the last row's.
        """
        if self._continues:
            self._warn_about_earlier_rows()
        row = {}
        for name, value in metrics_dict.items():
            kind = type(value)
            row[name] = value if kind is float or kind is int else to_scalar(value)
        if step is None:
            step = row.get("step", self._next_step)
        row["step"] = step
        self._next_step = int(step) + 1
        self.metrics.append(row)

    def save(self) -> None:
        """Write the buffered rows, and the hyperparameters if they changed."""
        if self._hparams_changed:
            write_hparams(self.hparams_file_path, self.hparams)
            self._hparams_changed = False
        if not self.metrics:
            return
        known = set(self.metrics_keys)
        new = {name for row in self.metrics for name in row if name not in known}
        if new:
            self._rewrite(sorted(known | new))
        else:
            start = "\n" if self._unterminated else ""
            append_text(self.metrics_file_path, start + _csv_text(_fields(self.metrics, self.metrics_keys)))
        self._unterminated = False
        self.num_rows += len(self.metrics)
        self.metrics = []

    def go_back(self, num_rows: int) -> None:
        """Take back the rows after a checkpoint: the run that goes on from there writes them again.

        Args:
            num_rows: How many rows there were then; more than there are now changes nothing.
        """
        self.save()
        self._continues = False
        rows, columns = self._rows_of_file()
        kept = rows[:num_rows] if num_rows >= 0 else rows
        if len(kept) == len(rows) and not self._unterminated:
            return
        replace_text(self.metrics_file_path, _csv_text([columns, *_fields(kept, columns)]))
        self._unterminated = False
        self._note(kept)
        rank_zero_info(
            f"{self.metrics_file_path!r}: {len(rows) - len(kept)} rows that were logged after the checkpoint are taken"
            " back; the run logs them again."
        )

    def begin_anew(self) -> None:
        """Begin an empty file; rows that are there are kept beside it, under a name that ends in `.bak`."""
        self._continues = False
        if self.num_rows:
            replace_text(f"{self.metrics_file_path}.bak", read_text(self.metrics_file_path) or "")
            self.go_back(0)

    def _rewrite(self, columns: list[str]) -> None:
        """Write all rows, old and buffered, under a new header."""
        old, _ = self._rows_of_file()
        rows = [columns, *_fields(old, columns), *_fields(self.metrics, columns)]
        replace_text(self.metrics_file_path, _csv_text(rows))
        self.metrics_keys = columns

    def _continue_existing_file(self) -> None:
        rows, self.metrics_keys = self._rows_of_file()
        if not self.metrics_keys:
            return
        self._unterminated = not (read_text(self.metrics_file_path) or "").endswith("\n")
        self._continues = True
        self._note(rows)

    def _rows_of_file(self) -> tuple[list[dict[str, str]], list[str]]:
        reader = csv.DictReader(io.StringIO(read_text(self.metrics_file_path) or "", newline=""))
        return list(reader), list(reader.fieldnames or [])

    def _note(self, rows: list[dict[str, str]]) -> None:
        self.num_rows = len(rows)
        self._next_step = 0
        for row in rows:
            with suppress(ValueError, TypeError):  # a row that was cut off
                self._next_step = int(float(row["step"])) + 1

    def _warn_about_earlier_rows(self) -> None:
        self._continues = False
        rank_zero_warn(
            f"{self.metrics_file_path!r} holds the metrics of an earlier run. The rows of this run are added to them,"
            " and `hparams.yaml` is replaced. Leave `version` out, or choose another, to keep the runs apart."
        )


class CSVLogger(RowLogger[ExperimentWriter]):
    """Log metrics to `<save_dir>/<name>/version_<n>/metrics.csv` and hyperparameters to `hparams.yaml` beside it.

    Rows go to the file after every `flush_logs_every_n_steps` of them, in `save` and `finalize`, when the logger ends
    with the process, and with the first row logged 5 seconds or more after the last time.

    Args:
        save_dir: Where all experiments are kept.
        name: Folder of the experiment; `None` or an empty string for none.
        version: Number or name of the run's folder. `None` takes the next free number at first use. If the folder has
            metrics of an earlier run, they are continued: with a warning, or, if the run resumes from a checkpoint of
            that one, from the row at which it was written, so that no row is there twice or missing.
        prefix: Put in front of every metric's name, joined by `-`.
        flush_logs_every_n_steps: How many rows are buffered.

    Example::

        logger = CSVLogger("logs", name="mnist")
        trainer = Trainer(logger=logger)
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, prefix, flush_logs_every_n_steps)

    def _open(self, log_dir: str) -> ExperimentWriter:
        return ExperimentWriter(log_dir)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Add hyperparameters; `hparams.yaml` is written at the next `save`.

        Args:
            params: Name to value.
        """
        self.experiment.log_hparams(convert_params(params))


def _fields(rows: Iterable[Mapping[str, Any]], columns: list[str]) -> list[list[Any]]:
    return [[row.get(column, "") for column in columns] for row in rows]


def _csv_text(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
