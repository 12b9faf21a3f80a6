"""The files of a `ModelCheckpoint`: which ones are its own to delete, and names that no other run may take.

Several runs may write into one folder. A name is reserved before its file is written by a hidden file beside it that
this process holds locked: another run sees the lock and takes the next name. The lock ends with the process, so what a
killed run has left reserves nothing, and the next run clears it away.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from fulmen.utilities.files import is_local, local_path
from fulmen.utilities.lazy import is_installed
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.staging import name_beside

__all__ = ["NameClaims", "can_link", "is_inside", "is_same_file", "sweep_claims", "warn_if_not_empty"]

_SUFFIX = ".claim"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def is_inside(path: str, folder: str) -> bool:
    """Tell whether a path names something below a folder, whatever `..` and links are in it.

    A link in the last part does not matter: what is deleted or replaced is the link, not what it leads to.

    Args:
        path: Path or URL.
        folder: Folder, of the same kind.
    """
    if is_local(path) != is_local(folder) or "\0" in path:
        return False
    if not is_local(path):
        below = path.removeprefix(folder.rstrip("/") + "/")
        return below != path and ".." not in below.split("/")
    name = local_path(path)
    if os.path.basename(name) in ("", ".", ".."):
        return False
    parent, root = (Path(os.path.realpath(each)) for each in (os.path.dirname(name), local_path(folder)))
    return parent == root or root in parent.parents


def is_same_file(first: str | os.PathLike[str] | None, second: str) -> bool:
    """Tell whether two paths lead to one file; `None` leads to none."""
    if first is None:
        return False
    if is_local(first) and is_local(second):
        return os.path.realpath(local_path(first)) == os.path.realpath(local_path(second))
    return os.fspath(first) == second


def can_link(folder: str) -> bool:
    """Tell whether symbolic links can be made in a folder that exists, and warn if not."""
    if not is_local(folder):
        return False
    probe = name_beside(os.path.join(local_path(folder), "link"))
    try:
        os.symlink("nowhere", probe)
    except OSError as error:
        rank_zero_warn(
            f"`ModelCheckpoint(save_last='link')`: no links can be made in {folder!r} ({error}). Files are written"
            " instead."
        )
        return False
    with suppress(FileNotFoundError):  # another run may take it for a leftover
        os.unlink(probe)
    return True


def warn_if_not_empty(folder: str, ckpt_path: str | os.PathLike[str] | None) -> None:
    """Warn about files that are in a folder already, unless the run goes on from one of them.

    Args:
        folder: Where checkpoints will be written.
        ckpt_path: What the run goes on from.
    """
    resumes_here = ckpt_path is not None and is_inside(os.fspath(ckpt_path), folder)
    if is_local(folder) and not resumes_here and os.path.isdir(folder) and os.listdir(folder):
        rank_zero_warn(
            f"The checkpoint folder {folder!r} exists and is not empty. Its files stay; new ones get other names where"
            " they would collide."
        )


class NameClaims:
    """Names of files that this process is about to write, kept from other processes. Local files of POSIX only."""

    def __init__(self) -> None:
        self._locks: dict[str, int] = {}  # path of the file to its open, locked claim

    def claim(self, path: str) -> bool:
        """Reserve a name.

        Args:
            path: The file that is to be written.

        Returns:
            False if there is such a file, or another process has reserved it.
        """
        if path in self._locks:
            return True
        if not _can_lock(path):
            return True
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            lock = _locked(_claim_of(path))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            os.unlink(_claim_of(path))  # a file system without locks: looking is all that can be done
            return not os.path.lexists(path)
        if lock is None:
            return False
        self._locks[path] = lock
        if os.path.lexists(path):  # looked at under the lock: whoever held it before may have written it
            self.release(path)
            return False
        return True

    def release(self, path: str) -> None:
        """Give a name free: the file is there now, or will not be written."""
        lock = self._locks.pop(path, None)
        if lock is not None:
            with suppress(FileNotFoundError):
                os.unlink(_claim_of(path))
            os.close(lock)

    def release_all(self) -> None:
        """Give all names free."""
        for path in list(self._locks):
            self.release(path)

    def __getstate__(self) -> dict[str, object]:
        """Locks stay with the process that has them."""
        return {"_locks": {}}


def sweep_claims(folder: str) -> None:
    """Remove what killed runs have left of their claims in a folder.

    Args:
        folder: The folder; one that is absent or on another machine has none.
    """
    if not _can_lock(folder) or not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(_SUFFIX):
            path = os.path.join(folder, name)
            with suppress(OSError):
                lock = _locked(path)
                if lock is not None:
                    os.unlink(path)
                    os.close(lock)


def _can_lock(path: str) -> bool:
    return is_local(path) and is_installed("fcntl")


def _claim_of(path: str) -> str:
    folder, name = os.path.split(path)
    # a hash, as the name itself may be as long as a name can be
    return os.path.join(folder, f".{hashlib.sha256(name.encode()).hexdigest()[:24]}{_SUFFIX}")


def _locked(path: str) -> int | None:
    """Open and lock a file, made if absent; `None` if another process holds it."""
    import fcntl

    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(lock, path):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:
            os.close(lock)
            raise
        os.close(lock)  # its holder has removed it in between: there is another one, or none


def _is_same(descriptor: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
