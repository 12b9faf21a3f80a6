"""What all launchers share: errors of one rank end all, and no process outlives the run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeAlias

from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.strategies.fault_line import CLEANUP_S
from fulmen.strategies.fault_report import Report, end_process, is_consequence
from fulmen.strategies.fault_watch import GRACE_S, FaultWatch

__all__ = [
    "PARENT_VARIABLE",
    "Carrier",
    "Child",
    "Launched",
    "Launcher",
    "end_children",
    "exit_code",
    "threads_per_process",
    "watch_parent",
]

Child: TypeAlias = "subprocess.Popen[bytes] | BaseProcess"

PARENT_VARIABLE = "FULMEN_PARENT"  # "process id:rank" of the launcher, in a script that it started

_CULPRIT_S = 60.0  # who failed first may still write a checkpoint; nobody waits for it
_POLL_S = 0.1


class Launched(Protocol):
    """What a launcher needs to know of a strategy."""

    cluster_environment: ClusterEnvironment | None

    @property
    def num_processes(self) -> int:
        """Processes on this machine."""

    @property
    def num_nodes(self) -> int:
        """Machines."""

    @property
    def node_rank(self) -> int:
        """Number of this machine."""

    def set_local_rank(self, local_rank: int) -> None:
        """Make this process that one of its machine."""


class Carrier(Protocol):
    """Brings back what a run in other processes changed."""

    def pack(self) -> Any:
        """Return, after the function, what is to go back; tensors and picklable objects.

        All processes call it, as they may have to gather it; what rank 0 returns counts.
        """

    def unpack(self, payload: Any) -> None:
        """Take, in the launching process, what `pack` returned; tensors are on the CPU."""


class Launcher(ABC):
    """Runs a function in all processes of a run, which it starts if they are not there.

    Args:
        strategy: Knows how many processes there are, and becomes one of them.

    Attributes:
        procs: The processes that were started from here.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy: Launched = strategy
        self.procs: list[Any] = []
        self._local_report: Report | None = None

    @property
    @abstractmethod
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook or console, where there is no script to run again."""

    @abstractmethod
    def launch(self, function: Callable[..., Any], *args: Any, carrier: Carrier | None = None, **kwargs: Any) -> Any:
        """Run a function in all processes.

        Args:
            function: What to run.
            args: Its arguments.
            carrier: Brings back what the function changed, where it does not run in this process.
            kwargs: Its arguments.

        Returns:
            What the function returned in this process, or in that of rank 0 if it does not run in this one.

        Raises:
            RankFailedError: Another rank failed; the message ends with its traceback.
        """

    def kill(self, signum: int) -> None:
        """Send a signal to all processes that were started from here.

        Args:
            signum: Number of the signal.
        """
        for process in self.procs:
            if exit_code(process) is None:
                os.kill(process.pid, signum)

    def explain(self, error: BaseException) -> Report | None:
        """Tell the other ranks of an error, and return the report of another rank if that one caused it.

        Args:
            error: What the function raised.
        """
        watch = FaultWatch.running()
        if watch is not None:
            culprit = watch.report(error)
            watch.release()  # whoever called `launch` may catch the error
            return culprit
        if is_consequence(error):
            deadline = time.monotonic() + 2.0
            while self._local_report is None and time.monotonic() < deadline:
                time.sleep(0.05)
        return self._local_report


def exit_code(process: Child) -> int | None:
    """Return what a process ended with, negative for a signal; `None` while it runs."""
    return process.exitcode if isinstance(process, BaseProcess) else process.poll()


def end_children(
    children: Mapping[int, Child], *, culprit: int | None, ask_after_s: float = GRACE_S, kill_after_s: float = CLEANUP_S
) -> None:
    """Wait until processes have ended, and see to it that they do.

    Args:
        children: The processes by rank.
        culprit: The rank that failed first; it gets more time.
        ask_after_s: When to send SIGTERM, in seconds from now.
        kill_after_s: When to send SIGKILL, in seconds from now.
    """
    begin, has_asked = time.monotonic(), False
    while running := {rank: child for rank, child in children.items() if exit_code(child) is None}:
        elapsed = time.monotonic() - begin
        for rank, child in running.items():
            if elapsed > (_CULPRIT_S if rank == culprit else kill_after_s):
                child.kill()
            elif elapsed > ask_after_s and rank != culprit and not has_asked:
                child.terminate()
        has_asked = elapsed > ask_after_s
        time.sleep(0.02)


def threads_per_process(num_processes: int) -> int:
    """Return the share of one process in the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_processes)


def watch_parent(parent: int, rank: int, is_alive: Callable[[], bool] | None = None) -> None:
    """End this process if the one that started it ends, in whatever way.

    Args:
        parent: Process id of the launcher.
        rank: Rank of that process, -1 if it has none.
        is_alive: Tells whether it is there; by default whether it is still the parent of this process.
    """
    is_alive = is_alive or (lambda: os.getppid() == parent)
    arguments = (parent, rank, is_alive)
    threading.Thread(target=_watch_parent, args=arguments, name="fulmen-parent-watch", daemon=True).start()


def _watch_parent(parent: int, rank: int, is_alive: Callable[[], bool]) -> None:
    while is_alive():
        time.sleep(_POLL_S)
    text = "The process that started this one is gone: it was killed, or it crashed."
    report = Report("death", max(rank, 0), socket.gethostname(), parent, time.time(), text)
    watch = FaultWatch.running()
    if watch is None:
        end_process(report)
        return
    if watch.wait_for_report(1.0) is None:
        watch.announce(report)
    time.sleep(CLEANUP_S)  # the watch ends this process before that, unless a hung thread blocks it
    os.kill(os.getpid(), signal.SIGKILL)
