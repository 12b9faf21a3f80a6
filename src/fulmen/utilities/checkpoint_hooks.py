"""What whoever takes part in checkpoints may override: modules, and precisions below them."""

from __future__ import annotations

from typing import Any

__all__ = ["CheckpointHooks"]


class CheckpointHooks:
    """What a user adds to a checkpoint."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` stored, before the weights are loaded."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add entries to the checkpoint that is about to be written."""
