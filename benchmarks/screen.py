"""Where the output of a measured run goes: nowhere, into a pipe, or onto a terminal; somebody reads the other end."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Screens", "output_to"]

_ROWS, _COLUMNS = 30, 120
_READ_AT_ONCE = 1 << 16


class Screens:
    """A pipe and a terminal, read to their end by threads of this process."""

    def __init__(self) -> None:
        pipe_out, self.pipe = os.pipe()
        terminal_out, self.terminal = pty.openpty()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        for end in (pipe_out, terminal_out):
            threading.Thread(target=_read_all, args=(end,), daemon=True).start()

    def close(self) -> None:
        """Close the ends that are written to."""
        os.close(self.pipe)
        os.close(self.terminal)


def _read_all(end: int) -> None:
    try:
        while os.read(end, _READ_AT_ONCE):
            pass
    except OSError:  # what Linux answers when the last writer of a terminal has gone
        pass
    finally:
        os.close(end)


@contextmanager
def output_to(end: int) -> Iterator[None]:
    """Let what is written to stdout and stderr go to another file descriptor, also from C code."""
    before = [os.dup(1), os.dup(2)]
    try:
        _point_to(end, end)
        yield
    finally:
        _point_to(*before)
        for descriptor in before:
            os.close(descriptor)


def _point_to(stdout: int, stderr: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
