"""Signals that end a run: noted by the handler, obeyed by the loop at a safe point."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from fulmen.utilities.exceptions import SIGTERMException

__all__ = ["Signals"]


class Signals:
    """Watches for SIGTERM during a run.

    Attributes:
        received: The number of the signal that came, read by the loops after each batch.
    """

    __slots__ = ("_pid", "_previous", "received")

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: Any = None
        self._pid = 0

    def install(self) -> None:
        """Begin to watch; only the main thread can."""
        self.received, self._pid = None, os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)

    def restore(self) -> None:
        """Put the user's handler back."""
        if self._previous is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._previous)
        self._previous = None

    def raise_received(self) -> None:
        """Leave the loop because of the signal.

        Raises:
            SIGTERMException: Ends the process with the exit code 128 + the signal's number, if nobody catches it.
        """
        raise SIGTERMException(128 + (self.received or signal.SIGTERM))

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # data loader workers inherit the handler by fork and must die of the signal as before
        if os.getpid() != self._pid:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self.received = signum
        if callable(self._previous):
            self._previous(signum, frame)
