"""What the framework asks of a place for checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.utilities.types import _MAP_LOCATION_TYPE, _PATH

__all__ = ["CheckpointIO"]


class CheckpointIO(ABC):
    """Writes, reads and removes checkpoints; it does not look into them.

    Subclass it to keep checkpoints elsewhere or in another format, and pass it as a plugin::

        Trainer(plugins=[MyCheckpointIO()])
    """

    @abstractmethod
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint so that it is there as a whole or not at all.

        Args:
            checkpoint: What to write.
            path: Where to.
            storage_options: From `Trainer.save_checkpoint`, for this class to understand.
        """

    @abstractmethod
    def load_checkpoint(
        self, path: _PATH, map_location: _MAP_LOCATION_TYPE = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: Where from.
            map_location: Where to put tensors, as for `torch.load`.
            weights_only: Refuse everything but tensors and plain data. `None` leaves it to torch.

        Returns:
            What was written.
        """

    @abstractmethod
    def remove_checkpoint(self, path: _PATH) -> None:
        """Delete a checkpoint, file or folder; one that is absent is no error.

        Args:
            path: Where it is.
        """

    def publish(self, action: Callable[[], None]) -> None:
        """Run an action once every checkpoint handed over before is durable: set a link, delete what is obsolete.

        Actions and saves keep their order. Here, where `save_checkpoint` returns when the file is durable, the action
        runs at once; those that write in the background run it in the writer's thread, and drop it if a write failed.

        Args:
            action: Takes nothing and returns nothing. It may run in another thread, so it should hold plain values
                only, such as paths, and must not save or load through this object.
        """
        action()

    def expect(self, checkpoint: Any) -> None:  # noqa: B027 - a documented no-op
        """Make ready for checkpoints; called once in a training that saves some, after its first optimizer step.

        Args:
            checkpoint: Holds the tensors of model and optimizers. They are going to change, and others may be added.
        """

    def raise_pending(self) -> None:  # noqa: B027 - a documented no-op
        """Raise the error of a write in the background that nobody has seen yet; returns at once, waits for nothing."""

    def wait(self) -> None:  # noqa: B027 - a documented no-op
        """Return when everything is written; for those that write in the background."""

    def teardown(self) -> None:  # noqa: B027 - a documented no-op
        """Finish all work; called at the end of each run. The object may be used again after it."""
