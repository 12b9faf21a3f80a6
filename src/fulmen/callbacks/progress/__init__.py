"""Progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.callbacks.progress.progress_bar import ProgressBar as ProgressBar
    from fulmen.callbacks.progress.rich_progress import RichProgressBar as RichProgressBar
    from fulmen.callbacks.progress.rich_progress import RichProgressBarTheme as RichProgressBarTheme
    from fulmen.callbacks.progress.tqdm_progress import TQDMProgressBar as TQDMProgressBar

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ProgressBar": "fulmen.callbacks.progress.progress_bar",
        "RichProgressBar": "fulmen.callbacks.progress.rich_progress",
        "RichProgressBarTheme": "fulmen.callbacks.progress.rich_progress",
        "TQDMProgressBar": "fulmen.callbacks.progress.tqdm_progress",
    },
)
