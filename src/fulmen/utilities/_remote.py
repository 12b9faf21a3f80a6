"""Checkpoints on file systems of other machines, through fsspec.

object stores: stream the blocks of an upload -> complete it, which makes the whole object appear -> compare its size
others: stream into a hidden file beside the target -> rename it
"""

from __future__ import annotations

import pickle
import shutil
import urllib.error
import urllib.request
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import torch

from fulmen.utilities._archives import CheckedFile, load_open, verify_open
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.staging import name_beside

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from fulmen.utilities.types import _MAP_LOCATION_TYPE

__all__ = ["copy_remote", "download", "load_remote", "publish", "try_writing", "verify_remote"]

# An upload to these appears as a whole when it is completed, and a rename would be a copy.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "r2")
_PIECE_BYTES = 8 * 2**20  # what is read ahead, too: torch jumps between the ends of a file before it reads on
_DOWNLOAD_TIMEOUT_S = 60


class _Pieces:
    """A file for `torch.save` that passes large tensors on bit by bit, so that they are not buffered as a whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.num_bytes = 0
        self.error: Exception | None = None  # torch raises one of its own, which does not tell the reason

    def write(self, chunk: Any) -> int:
        view = memoryview(chunk)
        try:
            for start in range(0, len(view), _PIECE_BYTES):
                self.file.write(view[start : start + _PIECE_BYTES])
        except Exception as error:
            self.error = self.error or error
            raise
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        pass  # a buffer is sent when it makes a block of an upload


def publish(obj: Any, url: str) -> None:
    """Save an object with `torch.save` so that the URL holds the whole new file or what it held before.

    Args:
        obj: What to save.
        url: Where to.

    Raises:
        OSError: The server holds another number of bytes than were sent, or refuses.
    """
    filesystem, target = _found(url)
    if _is_object_store(filesystem):
        num_bytes = _upload(filesystem, target, obj, url)
    else:
        filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        num_bytes = _write_and_rename(filesystem, target, obj, url)
    with suppress(PermissionError):  # who may write need not be allowed to look
        found = filesystem.info(target)["size"]
        if found != num_bytes:
            raise OSError(
                f"`{url}` was written, but holds {found} bytes of {num_bytes}, so it cannot be loaded. Another program"
                " may write to the same name; save again, under another one."
            )


def copy_remote(source: str, target: str) -> None:
    """Copy a file on its server, so that the target holds the whole content or what it held before."""
    filesystem, source_name = _found(source)
    _, name = _found(target)
    if _is_object_store(filesystem):
        filesystem.cp_file(source_name, name)
        return
    hidden = name_beside(name)
    try:
        filesystem.cp_file(source_name, hidden)
        filesystem.mv(hidden, name)
    except BaseException:
        with suppress(OSError):
            filesystem.rm_file(hidden)
        raise


def try_writing(folder: str) -> None:
    """Write an empty file into a folder and remove it.

    Raises:
        OSError: It could not be written.
    """
    filesystem, name = _found(folder.rstrip("/") + "/writable")
    hidden = name_beside(name)
    try:
        if not _is_object_store(filesystem):
            filesystem.makedirs(hidden.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(hidden, b"")
    except Exception as error:
        raise OSError(
            f"Nothing can be written to `{folder}`: {type(error).__name__}: {error}. Check that bucket or folder exist,"
            " and that this machine has the rights to write there, or choose another folder."
        ) from error
    with suppress(Exception):  # who may write need not be allowed to remove
        filesystem.rm_file(hidden)


def load_remote(url: str, map_location: _MAP_LOCATION_TYPE, weights_only: bool | None) -> Any:
    """Load what `publish` wrote, comparing it with its checksums while it is read.

    Raises:
        DamagedFileError: It is truncated or its content does not match its checksums.
        OSError: It is missing or cannot be read.
    """
    filesystem, name = _found(url)
    with filesystem.open(name, "rb", block_size=_PIECE_BYTES) as file:
        checked = CheckedFile(file, url)
        try:
            obj = load_open(checked, url, map_location, weights_only)
        except DamagedFileError:
            raise
        except Exception as error:
            checked.check()  # a damaged part explains it better
            if not isinstance(error, pickle.UnpicklingError):
                file.seek(0)
                verify_open(file, url)
            raise
        checked.check()
        return obj


def verify_remote(url: str) -> None:
    """Check that a file is whole; it is read once."""
    filesystem, name = _found(url)
    with filesystem.open(name, "rb") as file:
        verify_open(file, url)


def download(address: str, name: str) -> None:
    """Copy the file at an http(s) address into a local one.

    Raises:
        OSError: It is not there, or the connection broke.
    """
    try:
        with urllib.request.urlopen(address, timeout=_DOWNLOAD_TIMEOUT_S) as source, open(name, "wb") as file:
            shutil.copyfileobj(source, file)
    except urllib.error.URLError as error:
        raise OSError(f"`{address}` could not be downloaded: {error}. Check the address.") from error


def _upload(filesystem: AbstractFileSystem, target: str, obj: Any, url: str) -> int:
    # closing such a file completes the upload, even when an error closes it; so it is told to wait for `commit`
    file = filesystem.open(target, "wb", autocommit=False)
    try:
        num_bytes = _save_in_pieces(obj, file, url)
        file.close()
        file.commit()
    except BaseException:
        with suppress(Exception):  # the error above matters; the server drops what is never completed
            file.discard()
        file.closed = True  # else the garbage collection would complete it
        raise
    return num_bytes


def _write_and_rename(filesystem: AbstractFileSystem, target: str, obj: Any, url: str) -> int:
    hidden = name_beside(target)
    try:
        with filesystem.open(hidden, "wb") as file:
            num_bytes = _save_in_pieces(obj, file, url)
        filesystem.mv(hidden, target)
    except BaseException:
        with suppress(OSError):
            filesystem.rm_file(hidden)
        raise
    return num_bytes


def _save_in_pieces(obj: Any, file: IO[bytes], url: str) -> int:
    pieces = _Pieces(file)
    try:
        torch.save(obj, pieces)  # type: ignore[arg-type]  # it uses only `write` and `flush`
    except Exception:
        if (reason := pieces.error) is None:
            raise
        raise OSError(
            f"`{url}` was not written, an earlier file of that name is untouched: {type(reason).__name__}: {reason}."
            " Check the connection, and the rights to write there."
        ) from reason
    return pieces.num_bytes


def _found(url: str) -> tuple[AbstractFileSystem, str]:
    from fsspec.core import url_to_fs

    filesystem, name = url_to_fs(url)
    return filesystem, name


def _is_object_store(filesystem: AbstractFileSystem) -> bool:
    protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
    return any(protocol in _OBJECT_STORES for protocol in protocols)
