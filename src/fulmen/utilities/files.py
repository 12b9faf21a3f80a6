"""Files that are whole or not there: atomic saving, verified loading, paths of any file system.

`atomic_save`: write a hidden file beside the target -> flush -> fsync -> rename over the target -> fsync the folder
`load_file`: compare the checksums in the file with its content -> `torch.load`
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import torch

from fulmen.utilities import _remote
from fulmen.utilities._archives import load_open, verify_open
from fulmen.utilities.staging import create_beside, name_beside, put_in_place, remove_leftovers

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from fulmen.utilities.types import _MAP_LOCATION_TYPE

__all__ = [
    "atomic_link",
    "atomic_open",
    "atomic_save",
    "atomic_symlink",
    "ensure_writable",
    "get_filesystem",
    "is_local",
    "is_sharded_folder",
    "is_shared_filesystem",
    "load_file",
    "local_path",
    "problem_without_meta",
    "sync_folder",
    "verify_file",
]

_LOCAL_PROTOCOLS = ("file", "local")
_REMEDIES = {
    errno.ENOSPC: "Free some space or choose another folder",
    errno.EDQUOT: "Free some of your quota or choose another folder",
    errno.EACCES: "Make the folder writable for this user or choose another folder",
    errno.EPERM: "Make the folder writable for this user or choose another folder",
    errno.EROFS: "The file system is read-only: choose another folder",
}
_LINK_TRIES = 3


# ---- where


def get_filesystem(path: str | os.PathLike[str], **kwargs: Any) -> AbstractFileSystem:
    """Return the fsspec file system that a path belongs to.

    Args:
        path: A path or URL, e.g. `"s3://bucket/key"`.
        kwargs: Storage options of that file system.

    Returns:
        The file system; the local one for a path without protocol.
    """
    from fsspec.core import url_to_fs

    filesystem, _ = url_to_fs(os.fspath(path), **kwargs)
    return filesystem


def is_local(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is on a file system of this machine, mounted ones included."""
    text = os.fspath(path)
    protocol, found, _ = text.partition("://")
    return not found or ("::" not in text and protocol in _LOCAL_PROTOCOLS)


def local_path(path: str | os.PathLike[str]) -> str:
    """Return a local path without its protocol: `"file:///a/b"` becomes `"/a/b"`."""
    text = os.fspath(path)
    for protocol in _LOCAL_PROTOCOLS:
        text = text.removeprefix(f"{protocol}://")
    return text


def is_sharded_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a folder of shards that `torch.distributed.checkpoint` wrote, whole or not.

    Args:
        path: A local path or a URL; on a server there are none.
    """
    return is_local(path) and os.path.isfile(os.path.join(local_path(path), ".metadata"))


def problem_without_meta(path: str | os.PathLike[str]) -> str | None:
    """Return what is wrong with a folder of shards that holds nothing but tensors; `None` of any other path.

    Args:
        path: A local path or a URL.
    """
    if not is_sharded_folder(path) or os.path.isfile(os.path.join(local_path(path), "meta.pt")):
        return None
    return (
        f"The sharded checkpoint `{path}` has no file `meta.pt`, which holds what is no tensor (counters, callbacks,"
        " hyperparameters): `fit(ckpt_path=...)` and `load_from_checkpoint` cannot use it. Copy the folder again from"
        f" its source, whole, or take the weights alone: `fulmen convert {path} weights.pt`."
    )


def ensure_writable(folder: str | os.PathLike[str]) -> None:
    """Make sure, before the work begins, that files can be written into a folder; create it if needed.

    Hidden files are removed that a run left there which died while it saved; those of living runs stay.

    Args:
        folder: A local path or a URL.

    Raises:
        OSError: No file can be written there; the message says what to do.
    """
    if not is_local(folder):
        _remote.try_writing(os.fspath(folder))
        return
    name = os.path.abspath(local_path(folder))
    with _explained(name, "Nothing can be written there"):
        os.makedirs(name, exist_ok=True)
        file, probe = create_beside(os.path.join(name, "writable"), "wb")
        file.close()
        with suppress(FileNotFoundError):  # closed, it may seem a leftover to another run
            os.unlink(probe)
    remove_leftovers(name)


class _Ranks(Protocol):
    """The part of a strategy that is needed here."""

    @property
    def is_global_zero(self) -> bool: ...

    @property
    def world_size(self) -> int: ...

    def broadcast(self, obj: Any) -> Any: ...

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool: ...


def is_shared_filesystem(strategy: _Ranks, path: str | os.PathLike[str] | None = None, timeout: int = 3) -> bool:
    """Tell whether all ranks see the same folder; all of them must call this.

    Args:
        strategy: The strategy whose ranks are asked.
        path: The folder; default the working directory of rank 0.
        timeout: Seconds for which a rank looks for the file that rank 0 wrote there.

    Returns:
        True if every rank saw the file; also for one rank alone and for a path that is not on this machine. False if
        rank 0 cannot write there.
    """
    if strategy.world_size == 1 or (path is not None and not is_local(path)):
        return True
    probe = Path(local_path(path or os.getcwd())) / f".{os.urandom(8).hex()}.tmp"
    if strategy.is_global_zero:
        with suppress(OSError):
            probe.touch(exist_ok=False)
    probe = strategy.broadcast(probe)
    deadline = time.monotonic() + timeout
    while not (found := probe.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)  # a network file system shows a new file late
    try:
        return strategy.reduce_boolean_decision(found, all=True)
    finally:
        if strategy.is_global_zero:
            probe.unlink(missing_ok=True)


# ---- write


def atomic_save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Save an object with `torch.save` so that the path holds the whole new file or what it held before.

    A crash or a full disk at any moment leaves no half file under this name. Missing folders are created.

    Args:
        obj: What to save.
        path: Where to: a local path, or a URL that fsspec knows.

    Raises:
        OSError: The file could not be written; the message names it and says what to do.
    """
    if not is_local(path):
        _remote.publish(obj, os.fspath(path))
        return
    output: _Output | None = None
    try:
        with atomic_open(path) as file:
            output = _Output(file)
            torch.save(obj, output)  # type: ignore[arg-type]  # it uses only `write` and `flush`
    except Exception:
        # torch reports a failed write by an error of its own that says nothing about the reason
        if output is not None and output.error is not None:
            raise _explain(output.error, local_path(path), _NOT_WRITTEN) from output.error
        raise


class _Output:
    """A file for `torch.save` that remembers why writing failed."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, chunk: Any) -> int:
        try:
            return self.file.write(chunk)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def atomic_open(path: str | os.PathLike[str], mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    r"""Context for writing a local file that replaces the one at `path` when the block ends without an error.

    Args:
        path: The file to create or replace.
        mode: "wb", or "w" for UTF-8 text without translation of line ends.
        durable: Wait until the disk has it, about 10 ms; without, a crash of the machine may leave the old content.

    Yields:
        The open file.

    Raises:
        OSError: The file could not be created or put in place.

    Example::

        with atomic_open("metrics.csv", "w") as file:
            file.write("step,loss\n")
    """
    target = os.path.abspath(local_path(path))
    folder = os.path.dirname(target)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with _explained(target, _NOT_WRITTEN):
        os.makedirs(folder, exist_ok=True)
        file, temporary = create_beside(target, mode, **text)
    try:
        with file:
            yield file
            with _explained(target, _NOT_WRITTEN):
                file.flush()
                if durable:
                    _sync(file.fileno())
                if os.name != "nt":
                    os.replace(temporary, target)  # while it is open, and so locked: nobody takes it for a leftover
        with _explained(target, _NOT_WRITTEN):
            if os.name == "nt":  # renames no open file
                os.replace(temporary, target)
            if durable:
                sync_folder(folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def atomic_symlink(target: str | os.PathLike[str], link: str | os.PathLike[str]) -> None:
    """Make a symbolic link, replacing what has its name in one step; other processes see the old one or the new one.

    Args:
        target: The file or folder that the link leads to. The link is relative, so both can be moved together.
        link: The link. A file or folder of that name is removed.

    Raises:
        OSError: The link could not be made, e.g. on a file system without links.
    """
    place = os.path.abspath(local_path(link))
    folder = os.path.dirname(place)
    goal = os.path.relpath(os.path.realpath(local_path(target)), os.path.realpath(folder))
    with _explained(place, "The link was not made"):
        for tries_left in reversed(range(_LINK_TRIES)):
            try:
                _link(goal, place)
                break
            except FileNotFoundError:
                if not tries_left:  # else a run that is just beginning took the new link for a leftover
                    raise
        sync_folder(folder)


def atomic_link(target: str | os.PathLike[str], link: str | os.PathLike[str]) -> None:
    """Let one path show what another one holds: by a symbolic link where there are links, else by a copy on the server.

    Others see what the path held before or the whole new content. A copy takes none of this machine's network.

    Args:
        target: The file that is shown.
        link: The path that shows it, on the same file system.

    Raises:
        OSError: It could not be made.
    """
    if is_local(link):
        atomic_symlink(target, link)
    else:
        _remote.copy_remote(os.fspath(target), os.fspath(link))


def _link(goal: str, place: str) -> None:
    temporary = name_beside(place)
    os.symlink(goal, temporary)
    try:
        put_in_place(temporary, place)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot; a failing disk is EIO
            raise


def sync_folder(folder: str) -> None:
    """Make new names in a folder survive a power failure; Windows has no such call.

    Args:
        folder: A local folder.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


# ---- read


def load_file(
    path: str | os.PathLike[str], map_location: _MAP_LOCATION_TYPE = None, weights_only: bool | None = None
) -> Any:
    """Load what `torch.save` wrote, after a look whether the file is whole.

    It is compared with the checksums that `torch.save` put into it, which `torch.load` alone ignores: a local file
    before it is loaded, one on a server while it is read.

    Args:
        path: A local path, an http(s) address, or a URL that fsspec knows.
        map_location: Where to put tensors, as for `torch.load`.
        weights_only: Refuse everything but tensors and plain data. `None` leaves it to torch, which means True, for
            http(s) addresses, too.

    Returns:
        The object.

    Raises:
        DamagedFileError: The file is truncated or its content does not match its checksums.
        UnpicklingError: The file holds objects that were not allowed.
        OSError: The file is missing or cannot be read.
    """
    text = os.fspath(path)
    if _is_address(text):
        return _load_address(text, map_location, weights_only)
    if is_local(text):
        verify_file(text)
        with open(local_path(text), "rb") as file:
            return load_open(file, text, map_location, weights_only)
    return _remote.load_remote(text, map_location, weights_only)


def verify_file(path: str | os.PathLike[str]) -> None:
    """Check that a file that `torch.save` wrote is whole. It is read once, in pieces.

    Files without checksums (torch's old format, or `torch.serialization.set_crc32_options(False)`) are only checked for
    being there and not empty.

    Args:
        path: A local path, or a URL that fsspec knows.

    Raises:
        DamagedFileError: The file is empty, truncated, or its content does not match its checksums.
        OSError: The file is missing or cannot be read.
    """
    if not is_local(path):
        _remote.verify_remote(os.fspath(path))
        return
    name = local_path(path)
    with open(name, "rb") as file:
        verify_open(file, name)


def _is_address(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _load_address(address: str, map_location: _MAP_LOCATION_TYPE, weights_only: bool | None) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        name = str(Path(folder) / "download")
        _remote.download(address, name)
        with open(name, "rb") as file:
            verify_open(file, address)
            file.seek(0)
            return load_open(file, address, map_location, weights_only)


# ---- errors

_NOT_WRITTEN = "The file was not written, an earlier one of that name is untouched"


@contextmanager
def _explained(path: str, consequence: str) -> Iterator[None]:
    """Add to an `OSError` of the block what it means for the user."""
    try:
        yield
    except OSError as error:
        raise _explain(error, path, consequence) from error


def _explain(error: OSError, path: str, consequence: str) -> OSError:
    remedy = _REMEDIES.get(error.errno or 0, "Check the path")
    # three arguments: Python picks the subclass that belongs to the number, and keeps the file name
    return OSError(error.errno, f"{error.strerror or error}. {consequence}. {remedy}", path)
