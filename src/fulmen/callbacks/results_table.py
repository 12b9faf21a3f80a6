"""The table that `trainer.validate` and `trainer.test` print."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any, TextIO

__all__ = ["print_results"]

_LOADER_SUFFIX = "/dataloader_idx_"
_BORDERS_OF_A_CELL = 3  # two spaces and a line
_DIGITS = 6  # all that single precision has
_NARROWEST_METRIC = 12
_WIDEST_METRIC = 50


def print_results(results: list[dict[str, float]], stage: str, file: TextIO | None = None) -> None:
    """Print metrics as a table with a column for each dataloader; several tables where they don't fit side by side.

    Args:
        results: What `validate` or `test` returns: one dict of metrics for each dataloader.
        stage: "validate" or "test", for the title.
        file: Where to; the standard output by default.

    Example::

        print_results([{"loss": 0.5}, {"loss": 0.25}], "test")
    """
    rows = _rows(results)
    if not rows:
        return
    file = file or sys.stdout
    width = shutil.get_terminal_size().columns
    name_width = max(len(name) for name in rows)
    title = f"{stage.capitalize()} metric"
    headers = [f"DataLoader {idx}" for idx in range(len(results))]
    cell_width = max(len(text) for text in (*headers, *(cell for row in rows.values() for cell in row)))
    name_width = max(len(title), min(name_width, _WIDEST_METRIC, max(_NARROWEST_METRIC, width - cell_width - 7)))
    per_table = max(1, (width - name_width - 4) // (cell_width + _BORDERS_OF_A_CELL))
    for start in range(0, len(results), per_table):
        part = slice(start, start + per_table)
        body = [[name, *cells[part]] for name, cells in rows.items()]
        widths = [name_width] + [cell_width] * len(headers[part])
        text = _draw([title, *headers[part]], body, widths)
        _write(text, file)


def _rows(results: list[dict[str, float]]) -> dict[str, list[str]]:
    """Metric name, without the suffix of the loader, to its values by loader."""
    rows: dict[str, list[str]] = {}
    for loader_idx, metrics in enumerate(results):
        for name, value in metrics.items():
            cells = rows.setdefault(name.removesuffix(f"{_LOADER_SUFFIX}{loader_idx}"), [""] * len(results))
            cells[loader_idx] = _readable(value)
    return dict(sorted(rows.items()))


def _readable(value: Any) -> str:
    """A number as people write it: 0.985, not 0.9850000143051147; what `validate` returns stays exact."""
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)


def _draw(headers: list[str], body: list[list[str]], widths: list[int]) -> str:
    """Draw a table; long names go on in the next line."""

    def rule(left: str, line: str, cross: str, right: str) -> str:
        return left + cross.join(line * (width + 2) for width in widths) + right

    def row(cells: list[str], line: str) -> list[str]:
        parts = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
        height = max(map(len, parts))
        columns = [part + [""] * (height - len(part)) for part in parts]
        return [
            line + line.join(f" {text:^{width}} " for text, width in zip(texts, widths, strict=True)) + line
            for texts in zip(*columns, strict=True)
        ]

    lines = [rule("┏", "━", "┳", "┓"), *row(headers, "┃"), rule("┡", "━", "╇", "┩")]
    for cells in body:
        lines += row(cells, "│")
    return "\n".join([*lines, rule("└", "─", "┴", "┘")])


def _write(text: str, file: Any) -> None:
    try:
        file.write(text + "\n")
    except UnicodeEncodeError:  # a terminal or file without box characters
        file.write(text.translate(_ASCII) + "\n")
    file.flush()


_ASCII = str.maketrans("━─┏┳┓┡╇┩└┴┘┃│", "--+++++++++||")
