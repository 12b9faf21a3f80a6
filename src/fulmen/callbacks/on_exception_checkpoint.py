"""OnExceptionCheckpoint: saves where training broke off, for the next start to go on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulmen.callbacks.checkpoint import Checkpoint
from fulmen.utilities.files import get_filesystem

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["OnExceptionCheckpoint"]


class OnExceptionCheckpoint(Checkpoint):
    """Save a checkpoint when an exception ends training; the next `fit` without `ckpt_path` resumes from it.

    The file is deleted when a fit ends normally. Other runs than a fit, and `fast_dev_run`, neither write nor delete
    it; an error before training begins leaves it as it is.

    Args:
        dirpath: Folder of the file.
        filename: Its name without extension.

    Raises:
        ValueError: `filename` is empty.

    Example::

        Trainer(callbacks=OnExceptionCheckpoint("checkpoints"))
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: str | Path, filename: str = "on_exception") -> None:
        if not filename:
            raise ValueError("`OnExceptionCheckpoint(filename='')`: the filename cannot be empty. Leave it out.")
        self.dirpath = os.fspath(dirpath)
        self.filename = filename
        self._is_training = False
        self._broke_off = False

    @property
    def ckpt_path(self) -> str:
        """Path of the file."""
        return os.path.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def on_train_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Note that there is from now on something to save."""
        self._is_training = not trainer.fast_dev_run

    def on_exception(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Save, if it was training that broke off: a failed start must not replace the file it was to go on from."""
        self._broke_off = True
        if self._is_training and trainer.state.fn == "fit":
            trainer.save_checkpoint(self.ckpt_path)

    def teardown(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Delete the file if this fit went through."""
        broke_off, self._broke_off = self._broke_off, False
        self._is_training = False
        if trainer.state.fn != "fit" or trainer.fast_dev_run or broke_off:
            return
        if trainer.strategy.broadcast(get_filesystem(self.ckpt_path).exists(self.ckpt_path)):
            trainer.strategy.remove_checkpoint(self.ckpt_path)
