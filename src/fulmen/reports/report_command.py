"""`fulmen report FOLDER ...`: the HTML report of runs, from the shell."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fulmen.utilities.command_line import CommandParser

__all__ = ["command", "make_parser"]


def command(arguments: Sequence[str]) -> None:
    """Write a report and print where it is.

    Args:
        arguments: The words after `fulmen report`.

    Raises:
        SystemExit: The arguments are wrong, or a folder holds no run.
    """
    chosen = make_parser().parse_args(arguments)
    from fulmen.reports.page import write_report  # loads torch, which `--help` does not need

    try:
        path = write_report(chosen.folders, chosen.output)
    except (OSError, ValueError) as error:
        print(f"fulmen report: error: {error}", file=sys.stderr)  # noqa: T201 - a terminal
        raise SystemExit(1) from None
    print(path)  # noqa: T201 - the user asked for it


def make_parser() -> CommandParser:
    """Return what reads the command line."""
    parser = CommandParser(
        prog="fulmen report", description="Write one HTML page on a run, or on several beside each other."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder of a run, where metrics.csv is")
    parser.add_argument("-o", "--output", help="the HTML file; by default report.html in the first folder")
    return parser
