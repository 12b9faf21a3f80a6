"""Columns and sizes for a terminal; no torch, no rich."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence

__all__ = ["columns", "count_text", "paragraph", "size_text"]

_NO_TERMINAL = 10_000  # a pipe or file: lines stay whole, so that they can be searched
_NARROWEST = 20


def columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), indent: int = 2) -> str:
    """Lay rows out in columns; the last column goes on in the next line where the terminal is too narrow.

    Args:
        rows: Rows of equally many cells.
        right: Which columns are flush right.
        indent: Spaces before each line.

    Returns:
        The lines, without a line break at the end.
    """
    if not rows:
        return ""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    start = indent + sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = max(_NARROWEST, _width() - start)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        last = textwrap.wrap(row[-1], room, break_on_hyphens=False) if len(row[-1]) > room else [cells[-1]]
        lines.append(" " * indent + "  ".join([*cells[:-1], *last[:1]]).rstrip())
        lines += [" " * start + more for more in last[1:]]
    return "\n".join(lines)


def paragraph(text: str, indent: int = 2) -> str:
    """Break a text into lines of the terminal's width.

    Args:
        text: Words.
        indent: Spaces before each line.
    """
    return textwrap.fill(
        text, max(_NARROWEST, _width()), initial_indent=" " * indent, subsequent_indent=" " * indent,
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def size_text(num_bytes: int) -> str:
    """Write a size in bytes in a readable unit: `512 B`, `4.9 kB`, `1.2 GB`."""
    size, unit = float(num_bytes), 0
    units = ("B", "kB", "MB", "GB", "TB")
    while size >= 999.5 and unit < len(units) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {units[unit]}" if unit == 0 or size >= 99.95 else f"{size:.1f} {units[unit]}"


def count_text(number: int, one: str, several: str | None = None) -> str:
    """Write a number with its noun: `1 tensor`, `1,200 tensors`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _width() -> int:
    return shutil.get_terminal_size((_NO_TERMINAL, 24)).columns
