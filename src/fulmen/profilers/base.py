"""The profiler that does nothing."""

from __future__ import annotations

from fulmen.profilers.profiler import Profiler

__all__ = ["PassThroughProfiler"]


class PassThroughProfiler(Profiler):
    """Stands for "no profiler", so that code with `profile(...)` blocks runs unchanged."""

    def start(self, action_name: str) -> None:
        """Do nothing."""

    def stop(self, action_name: str) -> None:
        """Do nothing."""
