"""Hidden files beside a target, and what becomes of them when their writer dies.

A name tells on which machine its writer runs; a lock on the open file, which the kernel drops when a process ends in
whatever way, tells whether it still does. So a leftover is known for one without trusting clocks or process numbers,
which say nothing in another container or on another machine.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import time
import uuid
from contextlib import suppress
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LEFTOVER_AGE_S",
    "create_beside",
    "create_folder_beside",
    "name_beside",
    "put_in_place",
    "remove_leftovers",
]

LEFTOVER_AGE_S = 3600.0
"""How long a file must have been untouched to be a leftover where its writer's lock cannot be asked for, in seconds."""

_STAGED = re.compile(r"\..*\.([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
_AT_WORKING_FOLDER, _EXCHANGE = -100, 2  # constants of Linux' `renameat2`


def name_beside(path: str) -> str:
    """Return an unused hidden name in the same folder, hence on the same file system."""
    name = os.path.basename(path)
    return f"{path.removesuffix(name)}.{name[:48]}.{_machine()}-{os.urandom(4).hex()}.tmp"


def create_beside(path: str, mode: str, **options: Any) -> tuple[IO[Any], str]:
    """Open a new hidden file beside `path`, locked for as long as it is open.

    Args:
        path: The file to be replaced later.
        mode: Of `open`.
        options: For `open`.

    Returns:
        The file and its name.
    """
    while True:
        name = name_beside(path)
        file = open(name, mode.replace("w", "x"), **options)  # noqa: SIM115 - the caller closes it
        # between the two calls another run, cleaning up, may have taken the file for a leftover
        if _lock(file.fileno()) is not False and _is_linked(name, file.fileno()):
            return file, name
        file.close()


def create_folder_beside(path: str) -> tuple[str, int]:
    """Make a new hidden folder beside `path`, locked until the descriptor is closed.

    Args:
        path: The folder, or file, to be replaced later.

    Returns:
        The folder's name, and a descriptor to be closed by `os.close`; -1 where folders cannot be locked.
    """
    while True:
        name = name_beside(path)
        os.mkdir(name)
        if fcntl is None:
            return name, -1
        try:
            descriptor = os.open(name, os.O_RDONLY)
        except FileNotFoundError:  # another run, cleaning up, took it for a leftover
            continue
        if _lock(descriptor) is not False and _is_linked(name, descriptor):
            return name, descriptor
        os.close(descriptor)


def put_in_place(staged: str, path: str) -> None:
    """Rename a hidden file, link or folder over `path`, in one step; what was there is removed."""
    if not os.path.lexists(path) or not (_is_folder(staged) or _is_folder(path)):
        os.replace(staged, path)
    elif _exchanged(staged, path):
        _discard(staged)
    else:  # a file system that cannot exchange: for a moment there is nothing of that name
        aside = name_beside(path)
        os.rename(path, aside)
        os.rename(staged, path)
        _discard(aside)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _discard(path: str) -> None:
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def remove_leftovers(folder: str) -> list[str]:
    """Remove the hidden files of writers that died. Files of living ones and all other files stay.

    What was begun on this machine since it started is removed if its lock is free; else, and on file systems without
    locks, what nobody has touched for `LEFTOVER_AGE_S`.

    Args:
        folder: A local folder; one that is absent or unreadable has nothing to remove.

    Returns:
        What was removed.
    """
    removed = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _STAGED.fullmatch(entry.name)
            if match is not None and _remove(entry.path, is_of_this_machine=match[1] == _machine()):
                removed.append(entry.path)
    return removed


def _remove(path: str, *, is_of_this_machine: bool) -> bool:
    try:
        found = os.lstat(path)
        is_old = time.time() - found.st_mtime > LEFTOVER_AGE_S
        if stat.S_ISDIR(found.st_mode):
            _remove_folder(path, is_of_this_machine, is_old)
        elif not stat.S_ISREG(found.st_mode):  # a link cannot be locked, so who makes one tries again if it is gone
            if is_of_this_machine or is_old:
                os.unlink(path)
        else:
            _remove_file(path, is_of_this_machine, is_old)
    except OSError:
        return False  # gone already, or another user's
    return not os.path.lexists(path)


def _remove_folder(path: str, is_of_this_machine: bool, is_old: bool) -> None:
    descriptor = -1 if fcntl is None else os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        locked = None if fcntl is None else _lock(descriptor)
        if locked is not False and (is_old or (locked and is_of_this_machine)):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _remove_file(path: str, is_of_this_machine: bool, is_old: bool) -> None:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))  # NFS gives locks for writing only
    try:
        locked = _lock(descriptor)
        if locked is not False and (is_old or (locked and is_of_this_machine)):
            if fcntl is None:  # Windows removes no open file
                os.close(descriptor)
                descriptor = -1
            os.unlink(path)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Try to lock an open file: False if another one has it locked, `None` if the file system knows no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_linked(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _exchanged(first: str, second: str) -> bool:
    """Swap two directory entries in one step, where the system can."""
    import ctypes

    with suppress(AttributeError, OSError):
        swap = ctypes.CDLL(None, use_errno=True).renameat2
        names = os.fsencode(first), os.fsencode(second)
        return bool(swap(_AT_WORKING_FOLDER, names[0], _AT_WORKING_FOLDER, names[1], _EXCHANGE) == 0)
    return False


@functools.cache
def _machine() -> str:
    """A short name of this machine since it started; containers on one kernel share it, and see each other's locks."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            identity = file.read()
    except OSError:
        identity = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
