"""A process that ends together with the one that started it."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["die_with_parent"]

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(signum: int | None) -> None:
    """Let the system send this process a signal when its parent ends, where it can: on Linux.

    What counts is the thread that started this process: a parent that goes on without that thread ends it, too.

    Args:
        signum: Number of the signal; `None` for none.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum or 0)
