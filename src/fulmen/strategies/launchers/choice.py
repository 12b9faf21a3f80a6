"""Which launcher makes the processes of a strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from fulmen.strategies.launchers.external import ExternalLauncher
from fulmen.strategies.launchers.launcher import Launcher
from fulmen.strategies.launchers.multiprocessing import MultiProcessingLauncher
from fulmen.strategies.launchers.subprocess_script import SubprocessScriptLauncher

if TYPE_CHECKING:
    from fulmen.strategies.parallel import ParallelStrategy

__all__ = ["StartMethod", "choose_launcher"]

StartMethod: TypeAlias = Literal["popen", "spawn", "fork", "forkserver"]


def choose_launcher(strategy: ParallelStrategy, start_method: StartMethod) -> Launcher:
    """Return what makes the processes of a strategy, or knows that they exist.

    Args:
        strategy: The strategy, which knows its environment.
        start_method: How to make them, where nothing else has made them.
    """
    environment = strategy.cluster_environment
    if environment is not None and environment.creates_processes_externally:
        return ExternalLauncher(strategy)
    if start_method == "popen":
        return SubprocessScriptLauncher(strategy)
    return MultiProcessingLauncher(strategy, start_method=start_method)
