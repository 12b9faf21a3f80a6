"""Checkpoints of models on XLA devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fulmen.plugins.io.torch_io import TorchCheckpointIO
from fulmen.utilities.lazy import require
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from fulmen.utilities.types import _PATH

__all__ = ["XLACheckpointIO"]


class XLACheckpointIO(TorchCheckpointIO):
    """Files as those of `TorchCheckpointIO`, whose tensors are taken to the CPU first, so that any machine reads them.

    Args:
        args: For the next class, where this one is mixed with another.
        kwargs: Likewise.

    Raises:
        ModuleNotFoundError: The package `torch_xla` is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require("torch_xla", extra="xla", for_="XLACheckpointIO")
        super().__init__(*args, **kwargs)

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
        # One execution computes all that is pending; else each tensor's transfer would start one of its own.
        require("torch_xla", extra="xla", for_="XLACheckpointIO").sync()
        super().save_checkpoint(apply_to_collection(checkpoint, torch.Tensor, _on_cpu), path, storage_options)


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu()  # a tensor that is there already stays the same one
