"""A `CheckpointIO` around another one, to derive from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.io.torch_io import TorchCheckpointIO

__all__ = ["WrappingCheckpointIO"]


class WrappingCheckpointIO(CheckpointIO):
    """Passes everything on; a subclass overrides what it does differently.

    Args:
        checkpoint_io: Does the writing and reading; a `TorchCheckpointIO` by default.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self.checkpoint_io = checkpoint_io or TorchCheckpointIO()

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint."""
        self.checkpoint_io.save_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Remove a checkpoint."""
        self.checkpoint_io.remove_checkpoint(*args, **kwargs)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return self.checkpoint_io.load_checkpoint(*args, **kwargs)

    def publish(self, action: Callable[[], None]) -> None:
        """Put links and removals in their order behind the writes."""
        self.checkpoint_io.publish(action)

    def expect(self, checkpoint: Any) -> None:
        """Make ready for checkpoints."""
        self.checkpoint_io.expect(checkpoint)

    def raise_pending(self) -> None:
        """Raise the error of a write in the background."""
        self.checkpoint_io.raise_pending()

    def wait(self) -> None:
        """Return when everything is written."""
        self.checkpoint_io.wait()

    def teardown(self) -> None:
        """End what the other one has running."""
        self.checkpoint_io.teardown()
