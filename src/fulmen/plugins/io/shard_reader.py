"""Reads folders of shards without running code that is in them.

torch's reader unpickles the folder's index and objects that are no tensors as they are; these take plain data only.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
from typing import IO, Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from fulmen.utilities._archives import verify_open
from fulmen.utilities.plain_data import explain_refusal

__all__ = ["PlainPlanner", "RefusedError", "ShardReader"]

_METADATA = "torch.distributed.checkpoint.metadata"
_INDEX_NAMES = {  # whole names: of a module's other names, `os.system` may be one
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes", "Chunk")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "Path"),  # Python 3.13
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}
_TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)


class RefusedError(pickle.UnpicklingError):
    """The index of a folder asks for code that no index needs."""


class ShardReader(FileSystemReader):
    """torch's reader of a folder of shards, whose index may hold nothing but an index.

    Each shard is compared with its checksum before it is used.

    Args:
        path: The folder.
        metadata: Its index, if it has been read already.
    """

    def __init__(self, path: str | os.PathLike[str], metadata: Metadata | None = None) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index of the folder.

        Raises:
            RefusedError: It asks for something that no index needs.
        """
        metadata = self._metadata
        if metadata is None:
            rank = kwargs.get("rank")  # each rank has an index of its own where they were not put together
            path = self.fs.concat_path(self.path, ".metadata" if rank is None else f"__{rank}.metadata")
            with self.fs.create_stream(path, "rb") as file:
                metadata = _IndexUnpickler(file, str(path)).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id  # type: ignore[union-attr]  # just made
        self._metadata = metadata
        return metadata

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        part = self.check(file, sinfo)
        part.seek(0)
        return part

    def check(self, file: IO[bytes], place: Any) -> IO[bytes]:
        """Compare a shard with its checksum.

        Args:
            file: The file that it is in.
            place: Where in the file, an entry of the index.

        Returns:
            The part of the file, at some place.

        Raises:
            DamagedFileError: It is truncated, or does not match.
        """
        part = io.BufferedReader(_Part(file, place.offset, place.length))
        verify_open(part, f"{getattr(file, 'name', self.path)} at byte {place.offset}")
        return part


class _Part(io.RawIOBase):
    """A part of a file, as a file. torch's own has no end to which one can seek and read nothing."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._offset + self._position)
        content = self._file.read(size)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class PlainPlanner(DefaultLoadPlanner):
    """torch's plan of what to read, for objects that are plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take an object that is no tensor.

        Raises:
            UnpicklingError: It is not plain data.
        """
        name = read_item.dest_index.fqn
        try:
            loaded = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise explain_refusal(error, name) from error
        buffer = io.BytesIO()
        torch.save(loaded, buffer)
        buffer.seek(0)
        super().load_bytes(read_item, buffer)


class _IndexUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: str) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        is_torch_value = module == "torch" and isinstance(getattr(torch, name, None), _TORCH_VALUES)
        if (module, name) in _INDEX_NAMES or is_torch_value:
            return super().find_class(module, name)
        raise RefusedError(
            f"The index `{self._path}` of a sharded checkpoint asks for `{module}.{name}`, which no index needs:"
            " reading it could run any code, so it is refused. It is hostile or damaged: copy it again from its source."
        )
