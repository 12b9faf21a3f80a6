"""Callbacks that come with the framework, and their base class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.callbacks.checkpoint import Checkpoint as Checkpoint
    from fulmen.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from fulmen.callbacks.gradient_accumulation_scheduler import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from fulmen.callbacks.hang_watchdog import HangWatchdog as HangWatchdog
    from fulmen.callbacks.lambda_function import LambdaCallback as LambdaCallback
    from fulmen.callbacks.lr_monitor import LearningRateMonitor as LearningRateMonitor
    from fulmen.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from fulmen.callbacks.model_summary import ModelSummary as ModelSummary
    from fulmen.callbacks.non_finite_guard import NonFiniteError as NonFiniteError
    from fulmen.callbacks.non_finite_guard import NonFiniteGuard as NonFiniteGuard
    from fulmen.callbacks.on_exception_checkpoint import OnExceptionCheckpoint as OnExceptionCheckpoint
    from fulmen.callbacks.progress.progress_bar import ProgressBar as ProgressBar
    from fulmen.callbacks.progress.rich_progress import RichProgressBar as RichProgressBar
    from fulmen.callbacks.progress.tqdm_progress import TQDMProgressBar as TQDMProgressBar
    from fulmen.callbacks.rich_model_summary import RichModelSummary as RichModelSummary
    from fulmen.callbacks.timer import Timer as Timer
    from fulmen.callbacks.warmup import WarmupLR as WarmupLR
    from fulmen.core.callback import Callback as Callback

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Callback": "fulmen.core.callback",
        "Checkpoint": "fulmen.callbacks.checkpoint",
        "EarlyStopping": "fulmen.callbacks.early_stopping",
        "GradientAccumulationScheduler": "fulmen.callbacks.gradient_accumulation_scheduler",
        "HangWatchdog": "fulmen.callbacks.hang_watchdog",
        "LambdaCallback": "fulmen.callbacks.lambda_function",
        "LearningRateMonitor": "fulmen.callbacks.lr_monitor",
        "ModelCheckpoint": "fulmen.callbacks.model_checkpoint",
        "ModelSummary": "fulmen.callbacks.model_summary",
        "NonFiniteError": "fulmen.callbacks.non_finite_guard",
        "NonFiniteGuard": "fulmen.callbacks.non_finite_guard",
        "OnExceptionCheckpoint": "fulmen.callbacks.on_exception_checkpoint",
        "ProgressBar": "fulmen.callbacks.progress.progress_bar",
        "RichModelSummary": "fulmen.callbacks.rich_model_summary",
        "RichProgressBar": "fulmen.callbacks.progress.rich_progress",
        "TQDMProgressBar": "fulmen.callbacks.progress.tqdm_progress",
        "Timer": "fulmen.callbacks.timer",
        "WarmupLR": "fulmen.callbacks.warmup",
    },
)
