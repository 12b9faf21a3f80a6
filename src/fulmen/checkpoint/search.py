"""Where checkpoints lie: files of a folder, when they were written, names that have a meaning."""

from __future__ import annotations

import glob
import os
import pickle
import re

from fulmen.utilities.deepspeed import is_deepspeed_folder
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import get_filesystem, is_local, is_sharded_folder, local_path

__all__ = [
    "INTERRUPTED_NAME",
    "files_of",
    "hpc_files",
    "hpc_number",
    "is_checkpoint_folder",
    "is_whole_folder",
    "modified",
    "on_exception_file",
]

INTERRUPTED_NAME = "interrupted.ckpt"  # saved when a signal or the time limit ends training
_HPC_NAME = re.compile(r"hpc_ckpt_(\d+)\.ckpt")


def files_of(folder: str, pattern: str) -> list[str]:
    """Return the paths in a folder that match a pattern.

    Args:
        folder: The folder, taken literally; one that is absent has none.
        pattern: As a shell understands it; `**` stands for any depth.
    """
    filesystem = get_filesystem(folder)
    found = filesystem.glob(f"{glob.escape(str(folder).rstrip('/'))}/{pattern}")
    return [path if is_local(folder) else filesystem.unstrip_protocol(path) for path in found]


def modified(path: str) -> float:
    """Return when a file was written, as its file system says, in seconds."""
    if is_local(path):
        return os.lstat(local_path(path)).st_mtime  # of a link itself, which may lead nowhere
    filesystem = get_filesystem(path)
    return float(filesystem.modified(path).timestamp())


def is_checkpoint_folder(path: str) -> bool:
    """Tell whether a folder is a checkpoint: one of shards, or one of DeepSpeed, whole or not.

    Args:
        path: A local path.
    """
    return is_sharded_folder(path) or is_deepspeed_folder(path)


def is_whole_folder(path: str) -> bool:
    """Tell whether nothing is missing or damaged in a checkpoint folder; one of DeepSpeed is only looked for.

    Args:
        path: A local path.
    """
    from fulmen.plugins.io.distributed_io import verify_folder

    if not is_sharded_folder(path):
        return is_checkpoint_folder(path)
    try:
        verify_folder(path)
    except (DamagedFileError, pickle.UnpicklingError):
        return False
    return True


def on_exception_file(callback: object) -> str | None:
    """Return the file of an `OnExceptionCheckpoint`, if it is there; `None` for other callbacks."""
    path = getattr(callback, "ckpt_path", None)
    if isinstance(path, str) and get_filesystem(path).exists(path):
        return path
    return None


def hpc_files(folder: str) -> list[str]:
    """Return the files `hpc_ckpt_N.ckpt` of a folder, as saved when a cluster takes the machine away."""
    if not get_filesystem(folder).exists(str(folder)):
        return []
    return [path for path in files_of(folder, "*.ckpt") if hpc_number(path)]


def hpc_number(path: str) -> int:
    """Return N of `hpc_ckpt_N.ckpt`; 0 for other files."""
    match = _HPC_NAME.fullmatch(path.rpartition("/")[2])
    return int(match.group(1)) if match else 0
