"""Checkpoints as files of `torch.save`."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.utilities.files import atomic_save, get_filesystem, is_local, load_file, local_path
from fulmen.utilities.staging import remove_leftovers

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
            path: Local path or URL. Missing folders are made.
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
        atomic_save(checkpoint, path)

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: _MAP_LOCATION_TYPE = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, after a look whether the file is whole.

        Args:
            path: Local path, URL or http(s) address.
            map_location: Where to put tensors; by default the CPU.
            weights_only: Refuse everything but tensors and plain data. `None` leaves it to torch, which means True.

        Returns:
            What was written.

        Raises:
            FileNotFoundError: There is no such file.
            DamagedFileError: The file is not whole.
        """
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
