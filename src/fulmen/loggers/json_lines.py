"""Metrics as lines of JSON."""

from __future__ import annotations

import json
import math
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence, Set
from typing import Any

from fulmen.loggers.logger import XAxis
from fulmen.loggers.params import as_mapping, convert_params, is_array, sanitize_params, to_scalar
from fulmen.loggers.row_logger import RowLogger
from fulmen.loggers.text_file import append_text, make_folder, read_text, replace_text
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["JSONLogger", "JSONWriter"]

_LARGEST_ARRAY = 100


class JSONWriter:
    """Writes `metrics.jsonl` and `run.json` of one run. A `metrics.jsonl` that is there already is continued.

    Args:
        log_dir: Folder of the run; made if absent.
    """

    NAME_METRICS_FILE = "metrics.jsonl"
    NAME_RUN_FILE = "run.json"

    def __init__(self, log_dir: str) -> None:
        make_folder(log_dir)
        self.log_dir = log_dir
        self.metrics_file_path = os.path.join(log_dir, self.NAME_METRICS_FILE)
        self.run_file_path = os.path.join(log_dir, self.NAME_RUN_FILE)
        self.lines: list[str] = []  # not yet written
        self.num_rows = 0  # in the file
        self.run = self._run_of_file()
        self._next_step = 0
        self._unterminated = False
        self._run_changed = False
        self._continue_existing_file()
        self._continues = self.num_rows > 0  # rows of an earlier run, and nobody was told

    @property
    def num_buffered(self) -> int:
        """How many rows are not yet written."""
        return len(self.lines)

    @property
    def has_unsaved(self) -> bool:
        """Whether there is anything that would be lost."""
        return bool(self.lines) or self._run_changed

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; it is written at the next `save`.

        Args:
            metrics: Name to number, one-element tensor or NumPy scalar.
            step: Its `step`. `None` takes a metric called `step`, or else the number after the last row's.
        """
        if self._continues:
            self._continues = False
            rank_zero_warn(
                f"{self.metrics_file_path!r} holds the metrics of an earlier run. The rows of this run are added to"
                " them. Leave `version` out, or choose another, to keep the runs apart."
            )
        row = {name: _number(to_scalar(value)) for name, value in metrics.items()}
        step = int(row.pop("step", self._next_step) if step is None else step)
        row.pop("step", None)
        self._next_step = step + 1
        self.lines.append(json.dumps({"step": step, **row}, default=str) + "\n")

    def log_run(self, **members: Any) -> None:
        """Change members of `run.json`; they are written at the next `save`.

        Args:
            members: Name to value of JSON.
        """
        self.run.update(members)
        self._run_changed = True

    def save(self) -> None:
        """Write the buffered rows, and what is known of the run if it changed."""
        if self._run_changed:
            replace_text(self.run_file_path, json.dumps(self.run, indent=2) + "\n")
            self._run_changed = False
        if self.lines:
            append_text(self.metrics_file_path, ("\n" if self._unterminated else "") + "".join(self.lines))
            self._unterminated = False
            self.num_rows += len(self.lines)
            self.lines = []

    def go_back(self, num_rows: int) -> None:
        """Take back the rows after a checkpoint: the run that goes on from there writes them again.

        Args:
            num_rows: How many rows there were then; more than there are now changes nothing.
        """
        self.save()
        self._continues = False
        lines = (read_text(self.metrics_file_path) or "").splitlines(keepends=True)
        if 0 <= num_rows < len(lines):
            replace_text(self.metrics_file_path, "".join(lines[:num_rows]))
            rank_zero_info(
                f"{self.metrics_file_path!r}: {len(lines) - num_rows} rows that were logged after the checkpoint are"
                " taken back; the run logs them again."
            )
            self._continue_existing_file()

    def begin_anew(self) -> None:
        """Begin an empty file; rows that are there are kept beside it, under a name that ends in `.bak`."""
        if self.num_rows:
            replace_text(f"{self.metrics_file_path}.bak", read_text(self.metrics_file_path) or "")
            self.go_back(0)

    def _continue_existing_file(self) -> None:
        text = read_text(self.metrics_file_path) or ""
        lines = text.splitlines()
        self.num_rows = len(lines)
        self._unterminated = bool(text) and not text.endswith("\n")
        self._next_step = 0
        for line in reversed(lines):
            try:
                self._next_step = int(json.loads(line)["step"]) + 1
            except (ValueError, KeyError, TypeError):  # a line that was cut off
                continue
            break

    def _run_of_file(self) -> dict[str, Any]:
        try:
            run = json.loads(read_text(self.run_file_path) or "{}")
        except ValueError:
            return {}
        return run if isinstance(run, dict) else {}


class JSONLogger(RowLogger[JSONWriter]):
    """Log metrics to `<save_dir>/<name>/version_<n>/metrics.jsonl`, a JSON object per line, and the rest to `run.json`.

    A line of `metrics.jsonl` has the member `step` and one per metric, e.g. `{"step": 9, "epoch": 0, "loss": 0.5}`. NaN
    and infinity, which JSON lacks, are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, which `float()` reads.
    `run.json` has the nested `hyperparameters` and the `status`: `running`, or as `finalize` was told. Images, tables
    and the like are files in `media`.

    Rows are never written anew, so a run may log new metrics at any time for the price of a line. When they are written
    is as for `CSVLogger`.

    Args:
        save_dir: Where all experiments are kept.
        name: Folder of the experiment; `None` or an empty string for none.
        version: Number or name of the run's folder. `None` takes the next free number at first use. If the folder has
            metrics of an earlier run, they are continued: with a warning, or, if the run resumes from a checkpoint of
            that one, from the row at which it was written, so that no row is there twice or missing.
        prefix: Put in front of every metric's name, joined by `-`.
        flush_logs_every_n_steps: How many rows are buffered.
        x_axis: By which clock a Trainer numbers rows, see `Logger.x_axis`.

    Example::

        logger = JSONLogger("logs", name="mnist", x_axis="sample")
        trainer = Trainer(logger=logger)
        ...
        pandas.read_json(f"{logger.log_dir}/metrics.jsonl", lines=True)
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        *,
        flush_logs_every_n_steps: int = 100,
        x_axis: XAxis | None = None,
    ) -> None:
        super().__init__(save_dir, name, version, prefix, flush_logs_every_n_steps)
        self.x_axis = x_axis

    def _open(self, log_dir: str) -> JSONWriter:
        writer = JSONWriter(log_dir)
        writer.log_run(status="running")
        return writer

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Add hyperparameters; `run.json` is written at the next `save`.

        Args:
            params: Name to value; what JSON cannot hold is written as its text or the name of its type.
        """
        writer = self.experiment
        known = writer.run.get("hyperparameters", {})
        writer.log_run(hyperparameters={**known, **_plain(convert_params(params))})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write out everything, and note in `run.json` how the run ended.

        Args:
            status: `"success"`, `"failed"` or `"finished"`.
        """
        if self._experiment is not None:
            self._experiment.log_run(status=status)
        self.save()


def _number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _plain(value: Any) -> Any:
    """A hyperparameter as JSON has it."""
    mapping = as_mapping(value)
    if mapping is not None:
        return {str(key): _plain(item) for key, item in mapping.items()}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return _number(value)
    if is_array(value) and math.prod(value.shape) <= _LARGEST_ARRAY:
        return _plain(value.tolist())
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    return _number(sanitize_params({"value": value})["value"])
