"""Runs in processes of their own: forked from one that has imported everything, so that a start takes no time."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Ended", "end_group", "run_in_fork", "start_fork", "wait_for"]

PATIENCE_S = 90.0
"""A run that takes longer hangs."""

_LONGEST_LIFE_S = 600


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the number of the signal that ended it."""

    code: int
    seconds: float
    hung: bool = False


def start_fork(work: Callable[[], None], output: Path, *, codes: dict[type[BaseException], int] | None = None) -> int:
    """Do some work in a forked process.

    Args:
        work: The work; its error is written to the output, `SystemExit` gives the exit code.
        output: File to which the process writes what it says.
        codes: Exit codes for kinds of errors; others give 1.

    Returns:
        The number of the process, which leads a group of its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _in_fork(work, output, codes or {})
    with suppress(ProcessLookupError, PermissionError):  # it has done so itself
        os.setpgid(pid, pid)
    return pid


def _in_fork(work: Callable[[], None], output: Path, codes: dict[type[BaseException], int]) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        signal.alarm(_LONGEST_LIFE_S)  # if nobody waits for this process any more
        torch.set_num_threads(1)  # a pool of threads does not survive the fork: its owner would wait for it for ever
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(output, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        traceback.print_exc()
        code = next((number for kind, number in codes.items() if isinstance(error, kind)), 1)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # what the parent has registered for its exit is not ours


def wait_for(pid: int, *, kill_after_s: float | None = None) -> Ended:
    """Wait until a process has ended, and end what it has left behind.

    Args:
        pid: A process started by `start_fork`.
        kill_after_s: Kill it after this time.
    """
    start = time.monotonic()
    deadline = start + (PATIENCE_S if kill_after_s is None else kill_after_s)
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            now = time.monotonic()
            if done:
                return Ended(os.waitstatus_to_exitcode(status), now - start)
            if now >= deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return Ended(-signal.SIGKILL, now - start, hung=kill_after_s is None)
            time.sleep(min(0.003, max(deadline - now, 0.0)))
    finally:
        end_group(pid)


def end_group(pid: int) -> None:
    """End the processes that a killed one has left behind: workers of data loaders look for it only now and then."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def run_in_fork(
    work: Callable[[], None],
    output: Path,
    *,
    codes: dict[type[BaseException], int] | None = None,
    kill_after_s: float | None = None,
) -> Ended:
    """Do some work in a forked process, and wait for its end; see `start_fork` and `wait_for`."""
    return wait_for(start_fork(work, output, codes=codes), kill_after_s=kill_after_s)
