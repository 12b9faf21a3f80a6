"""Reports of runs: one HTML page from what is in their folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.reports.page import write_report as write_report
    from fulmen.reports.run_folder import RunContents as RunContents
    from fulmen.reports.run_folder import read_run as read_run

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "RunContents": "fulmen.reports.run_folder",
        "read_run": "fulmen.reports.run_folder",
        "write_report": "fulmen.reports.page",
    },
)
