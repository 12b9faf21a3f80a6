"""SpikeDetection: ends training when the loss jumps, and remembers the batches that did it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.core.callback import Callback
from fulmen.fabric.spike import SpikeDetection as FabricSpikeDetection
from fulmen.utilities.step_outputs import loss_in

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["SpikeDetection"]


class SpikeDetection(FabricSpikeDetection, Callback):
    """Raise when the loss of a batch is far off its running mean.

    The indices of the batch and of the one before it, within their epoch, are put into a file, so that the next run can
    leave them out. It waits for the device in each batch; ranks decide together. `NonFiniteGuard` goes on training
    instead of ending it.

    Args:
        mode: Whether the loss is to become smaller ("min") or larger ("max").
        window: Number of batches that the mean is over.
        warmup: Batches of an epoch before the first that can be a spike.
        atol: The loss must be off by at least this much; `None` for any amount.
        rtol: And by at least this part of the mean; `None` for any.
        exclude_batches_path: The file, if it ends in `.json`, or its folder; the working folder by default. What
            earlier runs have put into the file stays there.
        finite_only: A loss that is not finite is a spike.

    Raises:
        ValueError: The mode is not known, or a number out of range.
        TypeError: The path is none.
        TrainingSpikeException: The loss jumped, on any rank; raised from `fit`.

    Example::

        Trainer(callbacks=SpikeDetection(window=50, warmup=50, exclude_batches_path="bad_batches.json"))
    """

    def on_train_batch_end(  # type: ignore[override]  # a Trainer calls it, not Fabric
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of a batch.

        Raises:
            TrainingSpikeException: It jumped, on any rank.
            TypeError: `training_step` of a module that optimizes by hand returned no loss.
        """
        loss = loss_in(outputs)
        if loss is None and pl_module.automatic_optimization:
            return  # a batch that was skipped
        if loss is None:
            raise TypeError(
                f"`SpikeDetection` found no loss in batch {batch_idx}: `{type(pl_module).__name__}.training_step`"
                " optimizes by hand and returned none. Return the loss as a tensor, or as 'loss' in a dict."
            )
        super().on_train_batch_end(trainer, loss, batch, batch_idx)  # type: ignore[arg-type]  # offers what it needs
