"""Which profiler `Trainer(profiler=...)` means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.profilers.base import PassThroughProfiler
from fulmen.profilers.profiler import Profiler
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["choose_profiler"]


def _simple() -> Profiler:
    from fulmen.profilers.simple import SimpleProfiler

    return SimpleProfiler()


def _advanced() -> Profiler:
    from fulmen.profilers.advanced import AdvancedProfiler

    return AdvancedProfiler()


def _pytorch() -> Profiler:
    from fulmen.profilers.pytorch import PyTorchProfiler

    return PyTorchProfiler()


def _step() -> Profiler:
    from fulmen.profilers.step import StepProfiler

    return StepProfiler()


def _xla() -> Profiler:
    from fulmen.profilers.xla import XLAProfiler

    return XLAProfiler()


_BY_NAME: dict[str, Callable[[], Profiler]] = {
    "simple": _simple,
    "advanced": _advanced,
    "pytorch": _pytorch,
    "step": _step,
    "xla": _xla,
}


def choose_profiler(profiler: Any) -> Profiler:
    """Return the profiler for a name or object.

    Raises:
        MisconfigurationException: The name is not known, or the object is no profiler.
        ModuleNotFoundError: The profiler needs a package that is not installed.
    """
    if profiler is None:
        return PassThroughProfiler()
    if isinstance(profiler, Profiler):
        return profiler
    if isinstance(profiler, str) and profiler.lower() in _BY_NAME:
        return _BY_NAME[profiler.lower()]()
    raise MisconfigurationException(
        f"`Trainer(profiler={profiler!r})` is not known. Use one of {sorted(_BY_NAME)}, or a `Profiler`."
    )
