"""Reads folders of shards without running code that is in them.

torch's reader unpickles the folder's index and objects that are no tensors as they are; these take plain data only.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from fulmen.utilities.plain_data import explain_refusal

__all__ = ["PlainPlanner", "ShardReader"]

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


class ShardReader(FileSystemReader):
    """torch's reader of a folder of shards, whose index may hold nothing but an index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index of the folder.

        Raises:
            UnpicklingError: It asks for something that no index needs.
        """
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file:
            metadata: Metadata = _IndexUnpickler(file, str(path)).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id  # type: ignore[union-attr]  # just made
        return metadata


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
        raise pickle.UnpicklingError(
            f"The index `{self._path}` of a sharded checkpoint asks for `{module}.{name}`, which no index needs:"
            " reading it could run any code, so it is refused. Take the folder from its source again."
        )
