"""What is in the folder of a run, read as far as it is there and whole."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fulmen.loggers.params import flatten_dict
from fulmen.reports.metrics_files import Curve, curves_of_rows, rows_of_csv, rows_of_json_lines
from fulmen.reports.run_file import RUN_FILE, read_runs
from fulmen.utilities.lazy import is_installed, require

__all__ = ["CheckpointFile", "RunContents", "flatten", "read_run"]

_METRICS_CSV = "metrics.csv"
_METRICS_LINES = ("metrics.jsonl", "metrics.json")
_HPARAMS = "hparams.yaml"
_RUN_JSON = "run.json"  # of `JSONLogger`, with the hyperparameters
_CHECKPOINTS = "checkpoints"
_SUFFIX = ".ckpt"
_NUMBER = (int, float)
_KINDS: dict[str, type | tuple[type, ...]] = {  # of what an entry of `run_notes.json` holds beside text
    "seconds": _NUMBER, "steps": _NUMBER, "epochs": _NUMBER, "parameters": _NUMBER, "environment": dict,
    "checkpoints": dict,
}  # fmt: skip


@dataclass(slots=True)
class CheckpointFile:
    """A checkpoint, a file or a folder of shards."""

    name: str
    size: int | None
    """In bytes; None if it is no longer there."""
    modified: datetime | None
    score: float | None = None
    is_best: bool = False
    is_last: bool = False


@dataclass(slots=True)
class RunContents:
    """What a report shows of a run; whatever was not found is empty."""

    name: str
    folder: str = ""
    curves: dict[str, Curve] = field(default_factory=dict)
    num_rows: int = 0
    last_epoch: float | None = None
    hparams: list[tuple[str, str]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    """The entries of `run_notes.json`, oldest first."""
    checkpoints: list[CheckpointFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What could not be read, as phrases."""
    changed: datetime | None = None
    """When metrics were last written."""

    @property
    def main(self) -> dict[str, Any]:
        """The entry of the training, its last attempt; of anything else without one; empty without any."""
        fits = [run for run in self.runs if run.get("method") == "fit"]
        return (fits or self.runs or [{}])[-1]


def read_run(folder: str | os.PathLike[str]) -> RunContents:
    """Read the folder of a run: metrics, hyperparameters, `run_notes.json` and the list of checkpoints.

    Args:
        folder: As a file logger made it, e.g. `lightning_logs/version_0`; or the metrics file in it.

    Returns:
        What is there. Parts that are missing or broken are named in `problems`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds nothing that a run writes.
    """
    place = Path(folder).expanduser()
    if place.is_file():
        place = place.parent
    if not place.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r} to report on. Pass the folder of a run, where `metrics.csv` is:"
            " `trainer.log_dir` names it."
        )
    run = RunContents(name=_name(place), folder=str(place))
    _read_metrics(run, place)
    _read_hparams(run, place)
    _read_run_file(run, place)
    _list_checkpoints(run, place)
    if not (run.changed or run.hparams or run.runs or run.checkpoints):
        inside = sorted(each.name for each in place.iterdir() if each.is_dir())[:5]
        hint = f" It has the folders {inside}: pass one of them." if inside else ""
        raise ValueError(
            f"The folder {str(folder)!r} holds no run: no `{_METRICS_CSV}`, `{_METRICS_LINES[0]}`, `{_HPARAMS}`,"
            f" `{RUN_FILE}` or checkpoints.{hint} Log with a `CSVLogger` to have curves."
        )
    if run.changed is None:
        run.problems.append(f"there is no `{_METRICS_CSV}` or `{_METRICS_LINES[0]}`, so there are no curves")
    return run


def _name(place: Path) -> str:
    parts = place.resolve().parts
    return "/".join(parts[-2:]) if len(parts) > 2 and parts[-1].startswith("version_") else parts[-1]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


# ---- the parts
def _read_metrics(run: RunContents, place: Path) -> None:
    sources = [_METRICS_CSV, *_METRICS_LINES]
    path = next((place / name for name in sources if (place / name).is_file()), None)
    if path is None:
        return
    text = _text(path)
    rows, broken_rows = rows_of_csv(text) if path.name == _METRICS_CSV else rows_of_json_lines(text.splitlines())
    run.curves, broken_cells, run.last_epoch = curves_of_rows(rows)
    run.num_rows, run.changed = len(rows), _modified(path)
    for count, what in ((broken_rows, "row"), (broken_cells, "cell")):
        if count:
            plural = "" if count == 1 else "s"
            run.problems.append(f"{count} {what}{plural} of `{path.name}` could not be read")


def _read_hparams(run: RunContents, place: Path) -> None:
    path = place / _HPARAMS
    if not path.is_file():
        _read_run_json(run, place / _RUN_JSON)
        return
    text = _text(path)
    if is_installed("yaml"):
        yaml = require("yaml", extra="yaml", for_="read_run")
        try:
            run.hparams = list(flatten(yaml.safe_load(text)))
            return
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):
            pass  # e.g. objects of Python's, or a part of a file: shown as it is written
    pairs = (line.partition(":") for line in text.splitlines() if line.strip() and line.strip() != "{}")
    run.hparams = [(key.rstrip(), value.strip()) for key, _, value in pairs]


def _read_run_json(run: RunContents, path: Path) -> None:
    try:
        content = json.loads(_text(path))["hyperparameters"]
        run.hparams = list(flatten(content))
    except (OSError, KeyError):  # not there, or none were logged
        return
    except (ValueError, TypeError, AttributeError, RecursionError):
        run.problems.append(f"`{path.name}` is broken")


def flatten(content: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield the entries of nested settings, as `("optimizer.lr", "0.1")`.

    Args:
        content: The settings.
    """
    for name, value in flatten_dict(content, ".").items():
        yield name, "" if value is None else str(value)


def _read_run_file(run: RunContents, place: Path) -> None:
    try:
        found = read_runs(str(place))
    except ValueError:
        run.problems.append(f"`{RUN_FILE}` is broken")
        return
    run.runs = [_well_typed(each) for each in found]
    if run.runs != found:
        run.problems.append(f"parts of `{RUN_FILE}` are broken")


def _well_typed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of `run_notes.json` without what is not of the type that it should be."""
    kept: dict[str, Any] = {}
    for key, value in entry.items():
        kind = _KINDS.get(key, object)
        if value is None or (_is_number(value) if kind is _NUMBER else isinstance(value, kind)):
            kept[key] = value
    if kept.get("checkpoints") and not _are_checkpoints(kept["checkpoints"]):
        del kept["checkpoints"]
    return kept


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number that can be counted with; JSON has infinite ones, and ints without a bound."""
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _are_checkpoints(saved: dict[str, Any]) -> bool:
    scores = saved.get("scores") or {}
    if not isinstance(scores, dict):
        return False
    numbers, paths = [saved.get("best_score"), *scores.values()], [saved.get("best"), saved.get("last"), *scores]
    return all(each is None or _is_number(each) for each in numbers) and all(
        each is None or (isinstance(each, str) and "\0" not in each) for each in paths
    )


# ---- checkpoints
def _list_checkpoints(run: RunContents, place: Path) -> None:
    saved: dict[str, Any] = next((r["checkpoints"] for r in reversed(run.runs) if r.get("checkpoints")), {})
    scores = saved.get("scores") or {}
    best, last = _base(saved.get("best")), _base(saved.get("last"))
    scored = {_base(path): score for path, score in scores.items()}
    found = {path.name: path for path in _files(place / _CHECKPOINTS, place)}
    for path in (*scores, saved.get("best"), saved.get("last")):
        if path and _base(path) not in found:
            found[_base(path)] = Path(path)
    for name, path in found.items():
        entry = CheckpointFile(name, _size(path), _modified(path), scored.get(name), name == best, name == last)
        run.checkpoints.append(entry)
    run.checkpoints.sort(key=lambda each: (each.modified is None, each.modified, each.name))


def _base(path: Any) -> str:
    return str(path or "").replace("\\", "/").rstrip("/").rpartition("/")[2]


def _files(*folders: Path) -> Iterable[Path]:
    for folder in folders:
        if folder.is_dir():
            yield from (path for path in sorted(folder.rglob(f"*{_SUFFIX}")) if not path.name.startswith("."))


def _size(path: Path) -> int | None:
    try:
        if path.is_dir():  # the path may be anything that a file said
            return (
                None
                if path.suffix != _SUFFIX
                else sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
            )
        return path.stat().st_size
    except OSError:
        return None


def _modified(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    except OSError:
        return None
