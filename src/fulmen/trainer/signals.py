"""Signals that end a run: noted by the handler, obeyed by the loop at a safe point."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from fulmen.loops.agreement import TIME_IS_UP
from fulmen.utilities.exceptions import SIGTERMException
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_only

__all__ = ["Signals"]

log = logging.getLogger(__name__)

_SAME_PRESS_S = 0.3  # a terminal and a launcher both pass on one Ctrl-C
_CLEANUP_S = 10.0  # so long nothing but Ctrl-C cuts short how a run is taken down
_USER_SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
_CHILD_ENDED = getattr(signal, "SIGCHLD", None)  # not on Windows
_INTERRUPTED = {
    "fit": b"\nInterrupted: the step is finished and a checkpoint saved. Press Ctrl-C again to stop at once.\n",
    "": b"\nInterrupted: the run ends after this batch. Press Ctrl-C again to stop at once.\n",
}


class Signals:
    """Watches for the signals that end a run: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and SIGUSR2.

    One of them may announce that a cluster takes the machine away. The handlers only note the number, and pass SIGTERM
    and the cluster's signal on to child processes. The cluster's signal is noted from the beginning of a run: by
    default it would end the process. The others do what they do without a Trainer until there are loops to obey them.
    A second Ctrl-C is not noted but raised at once.

    Attributes:
        received: The number of the signal that came, or `TIME_IS_UP`; read by the loops after each batch.
        requeue_signal: The number that asks for a checkpoint and a new place in the queue; `None` without a cluster.
        is_obeyed: Whether the run is being left because of a signal, at a step that all ranks have agreed on.
    """

    __slots__ = (
        "_cleanup_since",
        "_forward",
        "_message",
        "_noted_at",
        "_pid",
        "_previous",
        "is_obeyed",
        "received",
        "requeue_signal",
    )

    def __init__(self) -> None:
        self.received: int | None = None
        self.requeue_signal: int | None = None
        self.is_obeyed = False
        self._previous: dict[int, Any] = {}
        self._pid = 0
        self._forward: Callable[[int], None] | None = None
        self._message = b""
        self._noted_at = 0.0  # when Ctrl-C was pressed, on the clock of `time.monotonic`
        self._cleanup_since: float | None = None

    def begin(self, *, requeue_signal: int | None = None, forward: Callable[[int], None] | None = None) -> None:
        """Begin to watch for the cluster's signal; only the main thread can.

        Args:
            requeue_signal: Asks for a requeue; a handler of the user's for it stays, and there is no requeue then. With
                one, SIGTERM by itself ends nothing: the cluster sends it along with the other.
            forward: Sends a signal on to the processes that this one has started.
        """
        self.received, self.requeue_signal, self._pid, self._forward = None, None, os.getpid(), forward
        self.is_obeyed, self._cleanup_since = False, None
        if requeue_signal is None or threading.current_thread() is not threading.main_thread():
            return
        if _is_taken(requeue_signal):
            _say_handler_stays(requeue_signal)
        else:
            self.requeue_signal = int(requeue_signal)
            self._watch(requeue_signal)

    def install(self, fn: str = "") -> None:
        """Watch for all signals as the loops begin; only the main thread can.

        Handlers of the user's for SIGINT, SIGUSR1 and SIGUSR2 stay, and what is ignored stays ignored. One for SIGTERM
        is called after ours.

        Args:
            fn: What runs, e.g. "fit"; it decides what Ctrl-C says.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        if self.requeue_signal is not None and not self._is_ours(self.requeue_signal):  # a hook has set a handler
            _say_handler_stays(self.requeue_signal)
            self.requeue_signal = None
        self._message = (_INTERRUPTED.get(fn) or _INTERRUPTED[""]) if rank_zero_only.rank in (0, None) else b""
        if signal.SIGTERM not in self._previous:  # it can be what asks for a requeue
            self._watch(signal.SIGTERM)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._watch(signal.SIGINT)
        for signum in _USER_SIGNALS:
            if signal.getsignal(signum) is signal.SIG_DFL and not _is_caught_outside_python(signum):
                self._watch(signum)

    def note_time_is_up(self) -> None:
        """Let the loops stop training at the next safe point because its time is up; a signal goes first."""
        if self.received is None:
            self.received = TIME_IS_UP

    def _watch(self, signum: int) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous[signum] = signal.signal(signum, self._handler(signum))

    def _handler(self, signum: int) -> Callable[[int, FrameType | None], None]:
        return self._note_child if signum == _CHILD_ENDED else self._note

    def _is_ours(self, signum: int) -> bool:
        return signal.getsignal(signum) == self._handler(signum)

    def leave_loops(self) -> None:
        """Note signals still, so that they do not cut short how a run is taken down, but raise Ctrl-C at once.

        Nor does the end of a data loader's worker, of which torch's handler raises an error wherever the program is.
        """
        if self._cleanup_since is None:
            self._cleanup_since = time.monotonic()
        self._put_back(signal.SIGINT)
        if _CHILD_ENDED is not None and callable(signal.getsignal(_CHILD_ENDED)) and not self._is_ours(_CHILD_ENDED):
            self._watch(_CHILD_ENDED)

    def restore(self) -> None:
        """Put the user's handlers back; those that the user has set since stay."""
        for signum in list(self._previous):
            self._put_back(signum)
        self._previous = {}

    def _put_back(self, signum: int) -> None:
        previous = self._previous.pop(signum, None)
        if threading.current_thread() is threading.main_thread() and previous is not None and self._is_ours(signum):
            signal.signal(signum, previous)

    @property
    def ending(self) -> int | None:
        """The signal that came and is to end the process; `None` if there was none."""
        return None if self.received in (TIME_IS_UP, self.requeue_signal) else self.received

    def raise_received(self) -> None:
        """Leave the loop because of the signal.

        Raises:
            KeyboardInterrupt: It was Ctrl-C.
            SIGTERMException: Ends the process with the exit code 128 + the signal's number, if nobody catches it.
        """
        self.is_obeyed = True
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SIGTERMException(128 + (self.received or signal.SIGTERM))

    # ---- the handler
    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._note_in_child(signum, frame)
            return
        if self._cleanup_since is not None and time.monotonic() - self._cleanup_since > _CLEANUP_S:
            _die_of(signum)  # it hangs
            return
        if signum == signal.SIGINT:
            if self._is_pressed_again(frame):
                return
            os.write(2, self._message)  # a constant, and no lock: the main thread may hold that of `sys.stderr`
        elif self._forward is not None and signum in (signal.SIGTERM, self.requeue_signal):
            self._forward(signum)
        is_ignored = signum == signal.SIGTERM and self.requeue_signal not in (None, signum)
        if not is_ignored and self.received in (None, TIME_IS_UP):  # the first one tells how the process ends
            self.received = signum
        previous = self._previous.get(signum)
        if callable(previous) and signum != signal.SIGINT:
            previous(signum, frame)

    def _note_child(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._previous[signum](signum, frame)
        except RuntimeError as error:  # of torch: a worker of a loader that the run is done with
            log.debug("A process ended while the run was taken down: %s", error)

    def _is_pressed_again(self, frame: FrameType | None) -> bool:
        """Tell if Ctrl-C is the echo of one that was noted; raise if it was pressed a second time."""
        now = time.monotonic()
        if self.received != signal.SIGINT:
            self._noted_at = now
            return False
        if now - self._noted_at > _SAME_PRESS_S:
            signal.default_int_handler(signal.SIGINT, frame)
        return True

    def _note_in_child(self, signum: int, frame: FrameType | None) -> None:
        """Data loader workers inherit the handler by fork. The run needs them up to its checkpoint.

        A terminal and a cluster send their signals to all processes. Of SIGTERM, by which the parent ends workers, and
        of a second Ctrl-C they die as before.
        """
        if signum == signal.SIGINT:
            if not self._is_pressed_again(frame):
                self.received = signum
        elif signum == signal.SIGTERM and signum != self.requeue_signal:
            _die_of(signum)


def _die_of(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _say_handler_stays(signum: int) -> None:
    rank_zero_info(f"Your own handler of {signal.Signals(signum).name} stays, so this job is not requeued.")


def _is_taken(signum: int) -> bool:
    is_default = signal.getsignal(signum) in (None, signal.SIG_IGN, signal.SIG_DFL)
    return not is_default or _is_caught_outside_python(signum)


def _is_caught_outside_python(signum: int) -> bool:
    """Tell if a handler is set that Python does not know of, e.g. by `faulthandler.register`; Linux shows them."""
    if signal.getsignal(signum) not in (None, signal.SIG_DFL):
        return False
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signum - 1) & 1)
