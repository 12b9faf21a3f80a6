"""Telling the user's own code from libraries, in stacks that are shown."""

from __future__ import annotations

import os
import sysconfig
from functools import lru_cache
from pathlib import Path

import fulmen

__all__ = ["is_user_code"]

_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")


@lru_cache(maxsize=1024)
def is_user_code(filename: str) -> bool:
    """Tell whether a file belongs to neither Python, nor an installed package, nor this framework.

    Args:
        filename: As in the code objects of frames.
    """
    if filename.startswith(("<frozen", "<string>")):
        return False
    libraries = [*(sysconfig.get_path(name) for name in _PATHS), str(Path(fulmen.__file__).parent)]
    inside = any(filename.startswith(folder + os.sep) for folder in libraries if folder)
    return not inside and f"{os.sep}site-packages{os.sep}" not in filename
