"""The kinds of files that hold weights: which one it is, and where the weights are in it."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fulmen.checkpoint.consolidate import read_sharded
from fulmen.checkpoint.contents import OWN_KEY
from fulmen.checkpoint.untrusted import StandIn, read_untrusted
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import is_local, load_file, local_path
from fulmen.utilities.lazy import require
from fulmen.utilities.migration import VERSION_KEY

__all__ = ["FULMEN", "LIGHTNING", "SAFETENSORS", "WEIGHTS", "FileContents", "find_weights", "read_any"]

FULMEN, LIGHTNING, WEIGHTS, SAFETENSORS = "fulmen", "lightning", "weights", "safetensors"
_OTHER = "other"
_HEADER_BYTES = 8  # of the length that a safetensors file begins with


@dataclass(slots=True)
class FileContents:
    """What a file, or a folder of shards, holds."""

    path: str
    format: str
    """`"fulmen"` or `"lightning"`: a checkpoint of a Trainer; `"weights"`: a plain `state_dict`; `"safetensors"`;
    `"other"`: anything else."""
    content: dict[str, Any]
    """Of a plain `state_dict` the tensors, of a safetensors file its metadata."""
    weights: dict[str, Any] = field(default_factory=dict)
    weights_key: str | None = None
    """Where the weights are in `content`; `None` if they are all of it, or if there are none."""
    is_sharded: bool = False
    refused: list[str] = field(default_factory=list)
    """Full names of the objects that were not loaded, as they are not plain data."""


def read_any(path: str | os.PathLike[str], *, trust: bool = False, key: str | None = None) -> FileContents:
    """Read a checkpoint of fulmen or Lightning, a `state_dict`, a safetensors file or a folder of shards.

    Args:
        path: A local path; for single files of `torch.save`, also a URL.
        trust: Also make objects that are no plain data, which runs code of the file.
        key: Where in the file the weights are, with dots, e.g. `"ema.model"`; looked for by default.

    Returns:
        What it holds; tensors of single files may stay on the disk until they are read.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It is not whole.
        UnpicklingError: It cannot be read without trusting it.
        KeyError: It has no weights under `key`.
    """
    name = os.fspath(path)
    if is_local(name) and not os.path.exists(local_path(name)):
        raise FileNotFoundError(f"there is no file or folder {name!r}")
    if is_local(name) and os.path.isdir(local_path(name)):
        from fulmen.plugins.io.distributed_io import trainer_layout

        return _with_weights(FileContents(name, _OTHER, trainer_layout(read_sharded(name)), is_sharded=True), key)
    if name.endswith(".safetensors"):
        return _read_safetensors(name)
    refused: list[str] = []
    if trust:
        loaded = load_file(name, map_location="cpu", weights_only=False)
    else:
        loaded, refused = read_untrusted(name)
    if not isinstance(loaded, Mapping):
        what = repr(loaded) if isinstance(loaded, StandIn) else f"an object of type `{type(loaded).__name__}`"
        raise pickle.UnpicklingError(
            f"`{name}` holds {what}, no dict. A model that was saved as a whole cannot be read without its code:"
            " load it where that code is, and save `model.state_dict()`."
        )
    return _with_weights(FileContents(name, _OTHER, dict(loaded), refused=refused), key)


def find_weights(content: Mapping[str, Any], key: str | None = None) -> tuple[str | None, dict[str, Any]]:
    """Return where in a dict the weights are, and the weights.

    Args:
        content: What a file holds.
        key: Where they are, with dots; by default `"state_dict"`, the dict itself, or the only dict of tensors in it.

    Returns:
        The key (`None`: all of it), and name to tensor; empty if there are none.

    Raises:
        KeyError: There are none under `key`.
    """
    if key is not None:
        found: Any = content
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if not _is_weights(found):
            raise KeyError(f"there are no weights under {key!r}; it has {_names(content)}")
        return key, dict(found)
    if _is_weights(content.get("state_dict")):
        return "state_dict", dict(content["state_dict"])
    if _is_weights(content):
        return None, dict(content)
    candidates = [name for name, value in content.items() if _is_weights(value)]
    if len(candidates) == 1 or "model" in candidates:
        name = "model" if "model" in candidates else candidates[0]
        return name, dict(content[name])
    return None, {}


def _with_weights(file: FileContents, key: str | None) -> FileContents:
    file.weights_key, file.weights = find_weights(file.content, key)
    if OWN_KEY in file.content and VERSION_KEY in file.content:
        file.format = FULMEN
    elif VERSION_KEY in file.content:
        file.format = LIGHTNING
    elif file.weights and file.weights_key is None:
        file.format = WEIGHTS
    return file


def _is_weights(value: Any) -> bool:
    """Whether it is a dict of tensors; a module's extra state may be among them, under a name that says so."""
    if not isinstance(value, Mapping) or not any(isinstance(each, Tensor) for each in value.values()):
        return False
    return all(isinstance(each, Tensor) or str(name).endswith("_extra_state") for name, each in value.items())


def _names(content: Mapping[str, Any]) -> str:
    names = sorted(map(str, content))
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")


def _read_safetensors(name: str) -> FileContents:
    safetensors = require("safetensors", extra="safetensors", for_="reading .safetensors files")
    if not is_local(name):
        raise FileNotFoundError(f"{name!r} is no local file. Download it: safetensors are read from local files only")
    _check_length(local_path(name))
    try:
        with safetensors.safe_open(local_path(name), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            weights = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118 - it is no mapping
    except safetensors.SafetensorError as error:
        raise DamagedFileError(f"The file `{name}` is damaged: {error}. Copy it again from its source.") from error
    return FileContents(name, SAFETENSORS, metadata, weights)


def _check_length(name: str) -> None:
    """Compare the length with what the header says; the format has no checksums."""
    size = os.path.getsize(name)
    try:
        with open(name, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(_HEADER_BYTES))
            header = json.loads(file.read(min(length, size)))
        ends = [entry["data_offsets"][1] for each, entry in header.items() if each != "__metadata__"]
        expected = _HEADER_BYTES + length + max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"The file `{name}` is damaged: its header cannot be read ({error}).") from error
    if size != expected:
        raise DamagedFileError(
            f"The file `{name}` is damaged: its header speaks of {expected} bytes, and it has {size}. Copy it again"
            " from its source."
        )
