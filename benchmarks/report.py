"""Numbers to tables: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["as_markdown", "as_text"]

Table = list[list[str]]


def as_text(results: dict[str, Any]) -> str:
    """Return the report for a terminal."""
    parts = [_environment(results)]
    for heading, table in _tables(results):
        widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in table]
        parts.append("\n".join([heading, "", lines[0], "-" * len(lines[0]), *lines[1:]]))
    return "\n\n".join(parts) + "\n"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]


def as_markdown(results: dict[str, Any]) -> str:
    """Return the report for a README."""
    parts = [_environment(results)]
    for heading, table in _tables(results):
        marks = ["---", *(["---:"] * (len(table[0]) - 1))]
        lines = ["| " + " | ".join(row) + " |" for row in (table[0], marks, *table[1:])]
        parts.append("\n".join([f"**{heading}**", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _environment(results: dict[str, Any]) -> str:
    packages = results["environment"]
    versions = " against ".join(f"{name} {about['version']}" for name, about in packages.items())
    about = next(iter(packages.values()))
    settings = results["settings"]
    return (
        f"{versions}; torch {about['torch']}, Python {about['python']}, {about['device']}, one thread,"
        f" {settings['clock']} time; {settings['rounds']} rounds of {settings['steps']} steps"
    )


def _tables(results: dict[str, Any]) -> list[tuple[str, Table]]:
    packages = list(results["environment"])
    tables = []
    for unit in dict.fromkeys(row["unit"] for row in results["times"]):
        rows = [row for row in results["times"] if row["unit"] == unit]
        plain = "plain save" if unit.endswith("per save") else "plain loop"
        if unit.endswith("with callbacks"):
            plain = "Trainer without"
        heading = f"Time over the {plain}, {unit}: median (middle half of the rounds), ratio to the {plain}"
        tables.append((heading, _times(rows, packages, plain)))
    if results["memory"]:
        tables.append(
            ("Extra memory of a save at its peak: MB, part of the file's size", _memory(results["memory"], packages))
        )
    if results["imports"]:
        tables.append(("Import after torch: ms, modules added", _imports(results["imports"], packages)))
    if results["counts"]:
        tables.append(("Counts", _counts(results["counts"], packages)))
    return tables


def _times(rows: list[dict[str, Any]], packages: list[str], plain: str) -> Table:
    table = [["", plain, *packages]]
    for row in rows:
        cells = [row["packages"].get(package) for package in packages]
        median = next(f"{cell['plain']['median']:.1f}" for cell in cells if cell is not None)
        table.append([row["title"], median, *("-" if cell is None else _over(cell) for cell in cells)])
    return table


def _over(figures: dict[str, Any]) -> str:
    over = figures["over"]
    digits = 0 if abs(over["median"]) >= 100 else 1
    spread = f"({over['low']:+.{digits}f} .. {over['high']:+.{digits}f})"
    return f"{over['median']:+.{digits}f} {spread} x{figures['ratio']['median']:.2f}"


def _memory(rows: list[dict[str, Any]], packages: list[str]) -> Table:
    table = [["", "plain save", *packages]]
    for row in rows:
        cells = [row["packages"][package] for package in packages]
        table.append([row["title"], _part(cells[0], "plain"), *(_part(cell, "measured") for cell in cells)])
    return table


def _part(figures: dict[str, Any], name: str) -> str:
    extra = figures[name]
    return "-" if extra is None else f"{extra:.0f} x{extra / figures['file']:.2f}"


def _imports(rows: list[dict[str, Any]], packages: list[str]) -> Table:
    table = [["", "torch", *packages]]
    for row in rows:
        cells = [row["packages"][package] for package in packages]
        texts = [f"{cell['over_ms']['median']:.0f} ms, {cell['modules']} modules" for cell in cells]
        table.append([row["title"], f"{cells[0]['torch_ms']['median']:.0f} ms", *texts])
    return table


def _counts(rows: list[dict[str, Any]], packages: list[str]) -> Table:
    return [["", *packages], *([row["title"], *(_number(row["packages"][p]) for p in packages)] for row in rows)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
