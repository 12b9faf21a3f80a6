"""Signals that end a run: noted by the handler, obeyed by the loop at a safe point."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from fulmen.utilities.exceptions import SIGTERMException
from fulmen.utilities.rank_zero import rank_zero_info

__all__ = ["Signals"]


class Signals:
    """Watches for SIGTERM, and for the signal by which a cluster announces that it takes the machine away.

    The handlers only note the number and pass the signal on to child processes. The cluster's signal is noted from the
    beginning of a run: by default it would end the process. SIGTERM ends it at once until there are loops to obey it.

    Attributes:
        received: The number of the signal that came, read by the loops after each batch.
        requeue_signal: The number that asks for a checkpoint and a new place in the queue; `None` without a cluster.
    """

    __slots__ = ("_forward", "_pid", "_previous", "received", "requeue_signal")

    def __init__(self) -> None:
        self.received: int | None = None
        self.requeue_signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._pid = 0
        self._forward: Callable[[int], None] | None = None

    def begin(self, *, requeue_signal: int | None = None, forward: Callable[[int], None] | None = None) -> None:
        """Begin to watch for the cluster's signal; only the main thread can.

        Args:
            requeue_signal: Asks for a requeue; a handler of the user's for it stays, and there is no requeue then. With
                one, SIGTERM by itself ends nothing: the cluster sends it along with the other.
            forward: Sends a signal on to the processes that this one has started.
        """
        self.received, self.requeue_signal, self._pid, self._forward = None, None, os.getpid(), forward
        if requeue_signal is None or threading.current_thread() is not threading.main_thread():
            return
        if _is_taken(requeue_signal):
            _say_handler_stays(requeue_signal)
        else:
            self.requeue_signal = int(requeue_signal)
            self._watch(requeue_signal)

    def install(self) -> None:
        """Watch for SIGTERM, too, as the loops begin; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        if self.requeue_signal is not None and not self._is_ours(self.requeue_signal):  # a hook has set a handler
            _say_handler_stays(self.requeue_signal)
            self.requeue_signal = None
        if signal.SIGTERM not in self._previous:  # it can be what asks for a requeue
            self._watch(signal.SIGTERM)

    def _watch(self, signum: int) -> None:
        self._previous[signum] = signal.signal(signum, self._note)

    def _is_ours(self, signum: int) -> bool:
        return signal.getsignal(signum) == self._note

    def restore(self) -> None:
        """Put the user's handlers back; those that the user has set since stay."""
        if threading.current_thread() is threading.main_thread():
            for signum, previous in self._previous.items():
                if previous is not None and self._is_ours(signum):
                    signal.signal(signum, previous)
        self._previous = {}

    def raise_received(self) -> None:
        """Leave the loop because of the signal.

        Raises:
            SIGTERMException: Ends the process with the exit code 128 + the signal's number, if nobody catches it.
        """
        raise SIGTERMException(128 + (self.received or signal.SIGTERM))

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # Data loader workers inherit the handler by fork. They must die of a signal as before, but of that to requeue:
        # the cluster sends it to all processes, and the run needs its workers up to the checkpoint.
        if os.getpid() != self._pid:
            if signum == self.requeue_signal:
                return
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if self._forward is not None:
            self._forward(signum)
        if self.requeue_signal is None or signum == self.requeue_signal:
            self.received = signum
        previous = self._previous.get(signum)
        if callable(previous):
            previous(signum, frame)


def _say_handler_stays(signum: int) -> None:
    rank_zero_info(f"Your own handler of {signal.Signals(signum).name} stays, so this job is not requeued.")


def _is_taken(signum: int) -> bool:
    return signal.getsignal(signum) not in (None, signal.SIG_IGN, signal.SIG_DFL)
