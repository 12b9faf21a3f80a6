"""What a run spends its time on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.profilers.advanced import AdvancedProfiler as AdvancedProfiler
    from fulmen.profilers.base import PassThroughProfiler as PassThroughProfiler
    from fulmen.profilers.profiler import Profiler as Profiler
    from fulmen.profilers.pytorch import PyTorchProfiler as PyTorchProfiler
    from fulmen.profilers.simple import SimpleProfiler as SimpleProfiler
    from fulmen.profilers.step import StepProfiler as StepProfiler
    from fulmen.profilers.xla import XLAProfiler as XLAProfiler

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AdvancedProfiler": "fulmen.profilers.advanced",
        "PassThroughProfiler": "fulmen.profilers.base",
        "Profiler": "fulmen.profilers.profiler",
        "PyTorchProfiler": "fulmen.profilers.pytorch",
        "SimpleProfiler": "fulmen.profilers.simple",
        "StepProfiler": "fulmen.profilers.step",
        "XLAProfiler": "fulmen.profilers.xla",
    },
)
