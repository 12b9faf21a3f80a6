"""Ends all processes of a run when one of them fails.

Each rank holds one connection to rank 0, in a thread of its own. It says in time what happens to it:

report     an error, or an interrupt, is leaving this rank: rank 0 tells all others; the first report wins
bye        this rank no longer watches: a regular end
(closed)   the connection broke without a word: the process was killed

A rank that hears of a report fails in its next collective, or is ended by its thread a few seconds later.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from fulmen.strategies.fault_line import WAIT_FOR_CULPRIT_S, Hub, Line, Spoke
from fulmen.strategies.fault_report import Report, is_consequence, is_launched
from fulmen.utilities.exceptions import RankFailedError

__all__ = ["BACKWARD_GRACE_S", "GRACE_S", "FaultWatch"]

GRACE_S = 3.0  # for a rank that does not notice by itself that another failed
BACKWARD_GRACE_S = 30.0


class FaultWatch:
    """Watches the processes of a run from one of them, and tells the others when this one fails.

    There is one in each process. It needs the store that the process group uses, which need not be there yet: start it
    before `init_process_group`, so that nobody waits there for a process that has died.

    Args:
        address: Where the store is: host of rank 0.
        port: Port of the store.
        rank: Number of this process.
        world_size: Number of processes.
        poll_s: How often to look at deadlines, in seconds; messages are read at once.
        grace_s: How long this process may run on after another one failed, in seconds.
        backward_grace_s: How long one backward may take after another rank has come to its end, in seconds: it may
            exchange gradients that never come, or just be slow.

    Example::

        watch = FaultWatch(address="127.0.0.1", port=29500, rank=rank, world_size=2)
        watch.start()
        try:
            train()
        except BaseException as error:
            watch.report(error)
            raise
    """

    _running: list[FaultWatch] = []  # noqa: RUF012 - the registry of this process: none or one

    def __init__(
        self,
        *,
        address: str,
        port: int,
        rank: int,
        world_size: int,
        poll_s: float = 0.5,
        grace_s: float = GRACE_S,
        backward_grace_s: float = BACKWARD_GRACE_S,
    ) -> None:
        # settings
        self.address = address
        self.port = port
        self.rank = rank
        self.world_size = world_size
        self.poll_s = poll_s
        self.grace_s = grace_s
        self.backward_grace_s = backward_grace_s
        # state
        self._line: Line | None = None
        self._previous_hook: Callable[..., Any] | None = None

    @classmethod
    def running(cls) -> FaultWatch | None:
        """Return the watch of this process, `None` if there is none."""
        return cls._running[0] if cls._running else None

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._line is not None

    @property
    def first_report(self) -> Report | None:
        """What ended the run, as far as this process knows."""
        return self._line.first_report if self._line else None

    def start(self) -> None:
        """Begin to watch; every rank must. Nothing happens if it runs already."""
        if self._line is not None:
            return
        for other in list(self._running):  # that of another strategy in the same program
            other.stop()
        self._line = Hub(self) if self.rank == 0 else Spoke(self)
        self._running.append(self)
        self._previous_hook, sys.excepthook = sys.excepthook, self._note_uncaught
        atexit.register(self._leave)
        self._line.start()

    def stop(self) -> None:
        """End the watch because this rank is done with the run; the others go on."""
        self._close("bye")

    def report(self, error: BaseException) -> Report | None:
        """Tell the other ranks that this one fails; the first of all reports is the one that counts.

        An error that looks like the consequence of another rank's end is held back until it is clear who failed first,
        for two seconds at most.

        Args:
            error: What leaves this rank.

        Returns:
            The report of another rank if `error` is only its consequence; `None` if this rank failed by itself.
        """
        line = self._line
        if line is None:
            return None
        line.is_leaving = True
        if is_consequence(error):
            line.arrived.wait(WAIT_FOR_CULPRIT_S)
            if line.first_report is None:
                line.blame_who_ended()
            first = line.first_report
            if first is not None and first.rank != self.rank:
                _write_elastic_error(first, is_own=False)
                return first
        own = Report.of_error(error, self.rank)
        if line.say_once(own) and own.kind == "error":
            _write_elastic_error(own, is_own=True)
        return None

    def leave(self) -> None:
        """Let this rank take its time to clean up: all ranks leave the run now, as they have agreed."""
        if self._line is not None:
            self._line.is_leaving = True

    def announce(self, report: Report) -> None:
        """Tell all ranks of the end of another process, which could not do it itself.

        Args:
            report: What is known.
        """
        if self._line is not None:
            self._line.say(report)

    def accept(self, report: Report) -> None:
        """Take what another part of this process has found out with the other ranks, who know it as well.

        Args:
            report: What ends the run.
        """
        if self._line is not None:
            self._line.receive(report)

    def wait_for_report(self, timeout_s: float) -> Report | None:
        """Wait until some rank has failed.

        Args:
            timeout_s: How long at most, in seconds.

        Returns:
            The report, `None` if there is none.
        """
        if self._line is not None:
            self._line.arrived.wait(timeout_s)
        return self.first_report

    def has_met(self, rank: int) -> bool:
        """Tell whether another rank ever began to watch; rank 0 knows, elsewhere the answer is always yes.

        Args:
            rank: Which one.
        """
        return not isinstance(self._line, Hub) or rank in self._line.met

    def release(self) -> None:
        """Leave it to the caller to end this process, who knows of the failure now."""
        if self._line is not None:
            self._line.is_released = True

    def forget(self) -> None:
        """Stop without a word, in a forked process, which is not the rank that this watch belongs to."""
        line, self._line = self._line, None
        if line is not None:
            line.drop()

    def _leave(self) -> None:
        self._close("exit")

    def _close(self, word: str) -> None:
        line, self._line = self._line, None
        if line is None:
            return
        self._running.remove(self)
        atexit.unregister(self._leave)
        if sys.excepthook == self._note_uncaught and self._previous_hook is not None:
            sys.excepthook = self._previous_hook
        line.close(word)

    def _note_uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Report what nobody caught: an error between two runs, or in a program with a loop of its own."""
        previous = self._previous_hook or sys.__excepthook__
        line = self._line
        if line is not None:
            culprit = self.report(error)
            line.is_released = False  # nobody will catch it any more
            if culprit is not None and not isinstance(error, RankFailedError):
                kind, trace = RankFailedError, None
                error = RankFailedError(culprit.message(), culprit.rank)
            if is_launched() and isinstance(error, (RankFailedError, KeyboardInterrupt)):
                return  # who launched it says so, last of all
        previous(kind, error, trace)


def _forget_in_child() -> None:
    while FaultWatch._running:
        FaultWatch._running.pop().forget()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is inherited
    os.register_at_fork(after_in_child=_forget_in_child)


def _write_elastic_error(report: Report, *, is_own: bool) -> None:
    """Let torchrun's summary name the rank that failed first: it shows the error with the smallest time."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    last_line = report.text.rstrip().rsplit("\n", 1)[-1]
    moment = int(report.time) if is_own else int(report.time) + 2
    extra = {"py_callstack": report.text if is_own else report.message(), "timestamp": str(moment)}
    with contextlib.suppress(OSError), open(path, "w") as file:
        json.dump({"message": {"message": last_line, "extraInfo": extra}}, file)
