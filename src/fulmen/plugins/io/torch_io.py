"""Checkpoints as files of `torch.save`."""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.utilities.deepspeed import DeepSpeedFolder, is_deepspeed_folder
from fulmen.utilities.files import atomic_save, get_filesystem, is_local, is_sharded_folder, load_file, local_path
from fulmen.utilities.staging import name_beside, put_in_place, remove_leftovers

if TYPE_CHECKING:
    from fulmen.utilities.types import _MAP_LOCATION_TYPE, _PATH

__all__ = ["TorchCheckpointIO"]

log = logging.getLogger(__name__)


class TorchCheckpointIO(CheckpointIO):
    """The default: one file per checkpoint, on any file system that fsspec knows.

    The first save into a folder removes the hidden files that runs left there which died while they saved.
    """

    _tidied: frozenset[str] = frozenset()  # folders; of the class, as subclasses need not call `__init__`

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint; a crash in between leaves what the path held before.

        Args:
            checkpoint: What to write.
            path: Local path or URL. Missing folders are made; a sharded checkpoint of that name is replaced.
            storage_options: Not supported.

        Raises:
            TypeError: `storage_options` are given.
            OSError: The file could not be written.
        """
        if storage_options is not None:
            raise TypeError(
                f"`Trainer.save_checkpoint(..., storage_options={storage_options!r})` is not supported by"
                f" `{type(self).__name__}`, which would ignore them. Pass a `CheckpointIO` of your own, which"
                " understands them, as `Trainer(plugins=...)`."
            )
        if is_local(path):
            self._tidy(os.path.dirname(os.path.abspath(local_path(path))))
            if is_sharded_folder(path):
                staged = name_beside(os.path.abspath(local_path(path)))
                atomic_save(checkpoint, staged)
                put_in_place(staged, local_path(path))
                return
        atomic_save(checkpoint, path)

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: _MAP_LOCATION_TYPE = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, after a look whether the file is whole; of a folder of shards, what lies beside them.

        Args:
            path: Local path, URL or http(s) address.
            map_location: Where to put tensors; by default the CPU.
            weights_only: Refuse everything but tensors and plain data. `None` leaves it to torch, which means True.

        Returns:
            What was written; for a folder a `ShardedCheckpoint`, whose tensors are read when they are asked for.

        Raises:
            FileNotFoundError: There is no such file.
            DamagedFileError: The file is not whole.
        """
        if is_local(path) and os.path.isdir(local_path(path)):
            from fulmen.plugins.io.distributed_io import ShardedCheckpoint

            if is_deepspeed_folder(path):
                return DeepSpeedFolder(path, trust=weights_only is False).read_whole()
            return ShardedCheckpoint(path, weights_only=weights_only)
        checkpoint: dict[str, Any] = load_file(path, map_location=map_location, weights_only=weights_only)
        return checkpoint

    def remove_checkpoint(self, path: _PATH) -> None:
        """Delete a checkpoint, file or folder; one that is absent is no error.

        Args:
            path: Local path or URL.
        """
        filesystem, name = get_filesystem(path), os.fspath(path)
        if os.path.islink(local_path(name)):
            os.remove(local_path(name))  # the link alone: what it points to is another checkpoint
        elif is_sharded_folder(name) or (is_local(name) and is_deepspeed_folder(local_path(name))):
            staged = name_beside(os.path.abspath(local_path(name)))
            os.rename(local_path(name), staged)  # hidden before it is incomplete
            shutil.rmtree(staged, ignore_errors=True)
        elif filesystem.exists(name):
            filesystem.rm(name, recursive=True)
        else:
            return
        log.debug("removed the checkpoint %s", path)

    def _tidy(self, folder: str) -> None:
        if folder not in self._tidied:
            self._tidied |= {folder}
            for leftover in remove_leftovers(folder):
                log.debug("removed %s, which a run left that died while it saved", leftover)
