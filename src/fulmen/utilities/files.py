"""Files that are whole or not there: atomic saving, verified loading, paths of any file system.

`atomic_save`: write a hidden file beside the target -> flush -> fsync -> rename over the target -> fsync the folder
`load_file`: compare the checksums in the file with its content -> `torch.load`
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import torch

from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.plain_data import explain_refusal

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from fulmen.utilities.types import _MAP_LOCATION_TYPE

__all__ = [
    "atomic_open",
    "atomic_save",
    "atomic_symlink",
    "ensure_writable",
    "get_filesystem",
    "is_local",
    "is_shared_filesystem",
    "load_file",
    "local_path",
    "verify_file",
]

_LOCAL_PROTOCOLS = ("file", "local")
# An upload to these appears as a whole when it is complete, and a rename would be a copy.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "r2")
_REMEDIES = {
    errno.ENOSPC: "Free some space or choose another folder",
    errno.EDQUOT: "Free some of your quota or choose another folder",
    errno.EACCES: "Make the folder writable for this user or choose another folder",
    errno.EPERM: "Make the folder writable for this user or choose another folder",
    errno.EROFS: "The file system is read-only: choose another folder",
}
_ZIP_START, _PICKLE_START = b"PK", b"\x80"
_DOWNLOAD_TIMEOUT_S = 60


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


def ensure_writable(folder: str | os.PathLike[str]) -> None:
    """Make sure, before the work begins, that files can be written into a folder; create it if needed.

    Args:
        folder: The folder. One on another machine is not tried.

    Raises:
        OSError: No file can be written there; the message says what to do.
    """
    if not is_local(folder):
        return
    name = local_path(folder)
    with _explained(name, "Nothing can be written there"):
        os.makedirs(name, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=name, prefix=".", suffix=".tmp"):
            pass


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
        _publish(obj, os.fspath(path))
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
    temporary = _name_beside(target)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with _explained(target, _NOT_WRITTEN):
        os.makedirs(folder, exist_ok=True)
        file = open(temporary, mode.replace("w", "x"), **text)  # noqa: SIM115 - closed below
    try:
        with file:
            yield file
            with _explained(target, _NOT_WRITTEN):
                file.flush()
                if durable:
                    _sync(file.fileno())
        with _explained(target, _NOT_WRITTEN):
            os.replace(temporary, target)
            if durable:
                _sync_folder(folder)
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
    temporary = _name_beside(place)
    goal = os.path.relpath(os.path.realpath(local_path(target)), os.path.realpath(folder))
    with _explained(place, "The link was not made"):
        os.symlink(goal, temporary)
    try:
        if os.path.isdir(place) and not os.path.islink(place):
            aside = _name_beside(place)
            os.rename(place, aside)  # a link cannot replace a folder
            os.rename(temporary, place)
            shutil.rmtree(aside)
        else:
            os.replace(temporary, place)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _publish(obj: Any, url: str) -> None:
    """Write to a file system that is not local."""
    from fsspec.core import url_to_fs

    content = io.BytesIO()
    torch.save(obj, content)
    filesystem, target = url_to_fs(url)
    protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
    folder, _, name = target.rpartition("/")
    if any(protocol in _OBJECT_STORES for protocol in protocols):
        filesystem.pipe_file(target, content.getvalue())
        return
    filesystem.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{os.urandom(4).hex()}.tmp"
    try:
        filesystem.pipe_file(temporary, content.getvalue())
        filesystem.mv(temporary, target)
    except BaseException:
        with suppress(OSError):
            filesystem.rm_file(temporary)
        raise


def _name_beside(path: str) -> str:
    """An unused hidden name in the same folder, hence on the same file system."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name[:48]}.{os.urandom(4).hex()}.tmp")


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot; a failing disk is EIO
            raise


def _sync_folder(folder: str) -> None:
    """Make a rename survive a power failure; Windows has no such call."""
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

    Local files are compared with the checksums that `torch.save` put into them, which `torch.load` alone ignores.

    Args:
        path: A local path, an http(s) address, or a URL that fsspec knows.
        map_location: Where to put tensors, as for `torch.load`.
        weights_only: Refuse everything but tensors and plain data. `None` leaves it to torch (True), except for http(s)
            addresses, where it means False.

    Returns:
        The object.

    Raises:
        DamagedFileError: The file is truncated or its content does not match its checksums.
        OSError: The file is missing or cannot be read.
    """
    text = os.fspath(path)
    if text.startswith(("http://", "https://")):
        return _load_address(text, map_location, bool(weights_only))
    if is_local(text):
        name = local_path(text)
        verify_file(name)
        with open(name, "rb") as file:
            return _load_open(file, text, map_location, weights_only)
    from fsspec.core import url_to_fs

    filesystem, name = url_to_fs(text)
    with filesystem.open(name, "rb") as file:
        return _load_open(file, text, map_location, weights_only)


def verify_file(path: str | os.PathLike[str]) -> None:
    """Check that a local file that `torch.save` wrote is whole. It is read once, from disk and not into memory.

    Files without checksums (torch's old format, or `torch.serialization.set_crc32_options(False)`) are only checked for
    being there and not empty.

    Args:
        path: The file.

    Raises:
        DamagedFileError: The file is empty, truncated, or its content does not match its checksums.
        OSError: The file is missing or cannot be read.
    """
    name = local_path(path)
    with open(name, "rb") as file:
        start = file.read(2)
        if not start:
            raise DamagedFileError(_damaged(name, "it is empty"))
        if start != _ZIP_START:
            return
        damaged = None
        try:
            with zipfile.ZipFile(file) as archive:
                if any(entry.CRC for entry in archive.infolist()):  # all zero: written without checksums
                    damaged = archive.testzip()
        except Exception as error:  # zipfile believes what the archive says of itself, and fails in many ways
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise  # the disk; EINVAL is a jump to an impossible place
            raise DamagedFileError(_damaged(name, f"it is truncated or overwritten ({error})")) from error
    if damaged is not None:
        raise DamagedFileError(_damaged(name, f"its part {damaged!r} does not match its checksum"))


def _load_open(file: IO[bytes], name: str, map_location: _MAP_LOCATION_TYPE, weights_only: bool | None) -> Any:
    start = file.read(2)
    file.seek(0)
    try:
        # torch's annotation of `map_location` is narrower than what it takes
        return torch.load(file, map_location=map_location, weights_only=weights_only)  # type: ignore[arg-type]
    except EOFError as error:
        raise DamagedFileError(_damaged(name, "it ends too early")) from error
    except RuntimeError as error:
        if "unexpected EOF" in str(error) or "PytorchStreamReader failed" in str(error):
            raise DamagedFileError(_damaged(name, "it is truncated or overwritten")) from error
        raise
    except Exception as error:  # what the unpickler makes of bytes that are no pickle
        if start != _ZIP_START and not start.startswith(_PICKLE_START):
            raise DamagedFileError(_damaged(name, "it is not a file of `torch.save`")) from error
        if isinstance(error, pickle.UnpicklingError):
            raise explain_refusal(error, name) from error
        raise


def _load_address(address: str, map_location: _MAP_LOCATION_TYPE, weights_only: bool) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        name = str(Path(folder) / "download")
        try:
            with urllib.request.urlopen(address, timeout=_DOWNLOAD_TIMEOUT_S) as source, open(name, "wb") as file:
                shutil.copyfileobj(source, file)
        except urllib.error.URLError as error:
            raise OSError(f"`{address}` could not be downloaded: {error}. Check the address.") from error
        try:
            return load_file(name, map_location, weights_only)
        except DamagedFileError as error:
            raise DamagedFileError(str(error).replace(name, address)) from error


def _damaged(name: str, reason: str) -> str:
    return f"The file `{name}` is damaged: {reason}. Use another checkpoint, or copy it again from its source."


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
