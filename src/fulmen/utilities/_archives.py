"""What `torch.save` wrote, read with a look at the checksums in it, which `torch.load` ignores."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import torch

from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.plain_data import explain_refusal

if TYPE_CHECKING:
    from fulmen.utilities.types import _MAP_LOCATION_TYPE

__all__ = ["CheckedFile", "damaged_error", "load_open", "verify_open"]

_ZIP_START, _PICKLE_START = b"PK\x03\x04", b"\x80"
# of the zip format
_LOCAL_HEADER_BYTES, _LENGTHS_AT = 30, 26  # name and extra field follow, then the content
_FOLDER_ATTRIBUTE = 0x10
_UNREADABLE_FLAGS = 0x2061  # encrypted in several ways, or a patch
_PIECE_BYTES = 2**20


def verify_open(file: IO[bytes], name: str) -> None:
    """Read a file to its end and compare it with its checksums.

    Args:
        file: At its beginning; seekable.
        name: For the message.

    Raises:
        DamagedFileError: It is empty, truncated, or does not match.
    """
    start = file.read(len(_ZIP_START))
    if not start:
        raise damaged_error(name, "it is empty")
    if start != _ZIP_START:
        _check_old_format(file, start, name)
        return
    damaged = None
    with _damage_named(name):
        with zipfile.ZipFile(file) as archive:
            _check_directory(archive, name)
            if _has_checksums(archive):
                damaged = _first_mismatch(archive)
        if damaged is None:
            file.seek(0)
            torch._C.PyTorchFileReader(file)  # torch looks at fields of the directory that Python passes over
    if damaged is not None:
        raise damaged_error(name, f"its part {damaged!r} does not match its checksum")


def load_open(file: Any, name: str, map_location: _MAP_LOCATION_TYPE, weights_only: bool | None) -> Any:
    """Load from an open file with `torch.load`.

    Args:
        file: At its beginning; seekable.
        name: For messages.
        map_location: As for `torch.load`.
        weights_only: As for `torch.load`.

    Raises:
        DamagedFileError: It is truncated, or nothing that `torch.save` wrote.
        UnpicklingError: It holds objects that `weights_only` refuses.
    """
    start = file.read(len(_ZIP_START))
    file.seek(0)
    try:
        # torch's annotation of `map_location` is narrower than what it takes
        return torch.load(file, map_location=map_location, weights_only=weights_only)  # type: ignore[arg-type]
    except EOFError as error:
        raise damaged_error(name, "it ends too early") from error
    except RuntimeError as error:
        if "unexpected EOF" in str(error) or "PytorchStreamReader failed" in str(error):
            raise damaged_error(name, "it is truncated or overwritten") from error
        raise
    except Exception as error:  # what the unpickler makes of bytes that are no pickle
        if start != _ZIP_START and not start.startswith(_PICKLE_START):
            raise damaged_error(name, "it is not a file of `torch.save`") from error
        if isinstance(error, pickle.UnpicklingError):
            raise explain_refusal(error, name) from error
        raise


class CheckedFile:
    """A file whose parts are compared with their checksums while `torch.load` reads them, so that it is read once.

    Args:
        file: Seekable, at its beginning.
        name: For messages.

    Raises:
        DamagedFileError: It is empty, or its directory cannot be read.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._headers: dict[int, zipfile.ZipInfo] = {}
        # by the position of the next byte: part, its checksum so far, bytes to come
        self._begun: dict[int, tuple[zipfile.ZipInfo, int, int]] = {}
        self._damaged: str | None = None
        start = file.read(len(_ZIP_START))
        file.seek(0)
        if not start:
            raise damaged_error(name, "it is empty")
        if start == _ZIP_START:
            with _damage_named(name), zipfile.ZipFile(file) as archive:
                _check_directory(archive, name)
                parts = archive.infolist() if _has_checksums(archive) else []
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                file.seek(0)
                verify_open(file, name)  # checksums are of the content, and what is read is something else
                parts = []
            self._headers = {part.header_offset: part for part in parts}
            file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        position = self._file.tell()
        content = self._file.read(size)
        part = self._headers.get(position)
        if part is not None and len(content) >= _LOCAL_HEADER_BYTES:
            lengths = struct.unpack_from("<HH", content, _LENGTHS_AT)
            self._begun[position + _LOCAL_HEADER_BYTES + sum(lengths)] = (part, 0, part.file_size)
        elif position in self._begun:
            self._compare(position, content)
        return content

    def readline(self, size: int = -1) -> bytes:
        """Read a line; torch asks for the method, and uses it for files in its old format."""
        return self._file.readline(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to another position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def check(self) -> None:
        """Look at what was read.

        Raises:
            DamagedFileError: A part does not match its checksum.
        """
        if self._damaged is None and any(left for _, _, left in self._begun.values()):
            self._file.seek(0)
            verify_open(self._file, self._name)  # a part was not read from beginning to end
        if self._damaged is not None:
            raise damaged_error(self._name, f"its part {self._damaged!r} does not match its checksum")

    def _compare(self, position: int, content: bytes) -> None:
        part, checksum, left = self._begun.pop(position)
        piece = memoryview(content)[:left]
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
        if left:
            self._begun[position + len(piece)] = (part, checksum, left)
        elif checksum != part.CRC:
            self._damaged = self._damaged or part.filename


def damaged_error(name: str, reason: str) -> DamagedFileError:
    """Return the error that says that a file is damaged, why, and what to do."""
    return DamagedFileError(
        f"The file `{name}` is damaged: {reason}. Use another checkpoint, or copy it again from its source."
    )


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except DamagedFileError:
        raise
    except Exception as error:  # zipfile believes what the archive says of itself, and fails in many ways
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # the disk; EINVAL is a jump to an impossible place
        raise damaged_error(name, f"it is truncated or overwritten ({error})") from error


def _check_old_format(file: IO[bytes], start: bytes, name: str) -> None:
    """See that a file which is no zip archive is one of torch's older formats, a pickle or a tar archive."""
    file.seek(0)
    if not start.startswith(_PICKLE_START) and not tarfile.is_tarfile(file):
        raise damaged_error(name, "it is truncated or overwritten, or not a file of `torch.save`")


def _check_directory(archive: zipfile.ZipFile, name: str) -> None:
    """Look for what has no checksum, and what torch would obey: it takes a tensor marked as a folder for empty."""
    parts = archive.infolist()
    for part in parts:
        is_folder = bool(part.external_attr & _FOLDER_ATTRIBUTE)
        is_cut = part.compress_type == zipfile.ZIP_STORED and part.compress_size != part.file_size
        if is_cut or part.volume or part.flag_bits & _UNREADABLE_FLAGS or (is_folder and part.file_size):
            raise damaged_error(name, f"the directory entry of its part {part.filename!r} is overwritten")
    if any(len(set(values)) < len(parts) for values in (archive.namelist(), [part.header_offset for part in parts])):
        raise damaged_error(name, "two parts in its directory have the same name or place")


def _first_mismatch(archive: zipfile.ZipFile) -> str | None:
    for part in archive.infolist():
        try:
            with archive.open(part) as content:
                while content.read(_PIECE_BYTES):
                    pass
        except zipfile.BadZipFile:  # noqa: PERF203 - a part is large
            return part.filename
    return None


def _has_checksums(archive: zipfile.ZipFile) -> bool:
    return any(part.CRC for part in archive.infolist())  # all zero: written without
