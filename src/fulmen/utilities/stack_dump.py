"""Python stacks of other threads, and of processes whose interpreter can't run any more."""

from __future__ import annotations

import faulthandler
import re
import signal
import tempfile
from typing import NamedTuple

__all__ = ["StackLine", "register_stack_dump", "stack_of"]

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_LINE = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')


class StackLine(NamedTuple):
    """A place in the code.

    Attributes:
        file: Name of the file.
        number: Number of the line.
        function: Name of the function.
    """

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number} in `{self.function}`"


def stack_of(thread: int) -> list[StackLine]:
    """Return where another thread of this process is, the innermost line first; at most 100 lines.

    Native code reads the stacks: before Python 3.12, to look at the frames of a running thread can crash the process.

    Args:
        thread: Identifier of the thread.
    """
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="backslashreplace")
    lines: list[StackLine] = []
    is_here = False
    for line in text.splitlines():
        if (head := _THREAD.match(line)) is not None:
            is_here = int(head[1], 16) == thread
        elif is_here and (match := _LINE.match(line)) is not None:
            lines.append(StackLine(match[1], int(match[2]), match[3]))
    return lines


def register_stack_dump() -> int | None:
    """Let a signal print the Python stack of this process to stderr, even while native code holds the interpreter lock.

    Returns:
        The number of the signal, one that nobody else uses; `None` where there is none left.
    """
    number = getattr(signal, "SIGRTMAX", 0) - 3
    if number <= 0 or signal.getsignal(number) is not signal.SIG_DFL:
        return None
    faulthandler.register(number, file=2, all_threads=False)
    return int(number)
