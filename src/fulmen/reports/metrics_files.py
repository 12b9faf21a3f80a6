"""Curves from the metrics file of a run: `metrics.csv`, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Curve", "curves_of_rows", "rows_of_csv", "rows_of_json_lines"]

_COORDINATES = ("step", "epoch", "stage", "time", "timestamp")


@dataclass(slots=True)
class Curve:
    """The values logged under one name, in the order of the file."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    """As logged, NaN and infinite ones too."""

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in zip(self.steps, self.values, strict=True) if math.isfinite(y)]

    @property
    def not_finite(self) -> list[tuple[float, float]]:
        """The points that cannot."""
        return [(x, y) for x, y in zip(self.steps, self.values, strict=True) if not math.isfinite(y)]


def rows_of_csv(text: str) -> tuple[list[Mapping[str, Any]], int]:
    """Return the rows of a CSV file, and how many could not be read.

    Args:
        text: Content of the file; a last line that was cut off, or lines with too many cells, are left out.
    """
    if not text.strip():
        return [], 0
    reader = csv.DictReader(io.StringIO(text.replace("\0", ""), newline=""), strict=False)
    rows: list[Mapping[str, Any]] = []
    broken = 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error:  # e.g. a cell of many thousand characters
            broken += 1
            continue
        if row is None:
            return rows, broken
        if None in row or None in row.values():
            broken += 1
        else:
            rows.append(row)


def rows_of_json_lines(lines: Iterable[str]) -> tuple[list[Mapping[str, Any]], int]:
    """Return the rows of metrics of a file of JSON lines, and how many lines could not be read.

    Args:
        lines: Each an object with `step` and the metrics, beside it or in an object called `metrics`. Objects without
            a `step` tell of something else and are passed over.
    """
    rows: list[Mapping[str, Any]] = []
    broken = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            broken += 1
            continue
        if not isinstance(row, dict):
            broken += 1
        elif "step" in row:
            metrics = row.get("metrics")
            rows.append({**metrics, "step": row["step"]} if isinstance(metrics, dict) else row)
    return rows, broken


def curves_of_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Curve], int, float | None]:
    """Return name to curve, how many cells were no numbers, and the last epoch.

    Args:
        rows: Each with `step` and values as numbers or text; a row without a step gets the number of its line.
    """
    curves: dict[str, Curve] = {}
    broken = 0
    epoch: float | None = None
    for number, row in enumerate(rows):
        step = _number(row.get("step"))
        epoch_here = _number(row.get("epoch"))
        epoch = epoch if epoch_here is None else epoch_here
        for name, cell in _cells(row):
            value = _number(cell)
            if value is None:
                broken += 1
                continue
            curve = curves.setdefault(name, Curve())
            curve.steps.append(float(number) if step is None or not math.isfinite(step) else step)
            curve.values.append(value)
    return curves, broken, epoch


def _cells(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, cell in row.items():
        if name not in _COORDINATES and cell is not None and cell != "":
            yield name, cell


def _number(cell: Any) -> float | None:
    """The number in a cell, None if it holds something else."""
    try:
        return None if cell is None or cell == "" or isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
