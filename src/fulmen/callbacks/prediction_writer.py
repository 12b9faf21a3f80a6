"""BasePredictionWriter: the base of callbacks that write predictions away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fulmen.core.callback import Callback
from fulmen.utilities.enums import LightningEnum
from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["BasePredictionWriter", "WriteInterval"]


class WriteInterval(LightningEnum):
    """When predictions are written."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Whether after each batch."""
        return self in (self.BATCH, self.BATCH_AND_EPOCH)

    @property
    def on_epoch(self) -> bool:
        """Whether at the end, all at once."""
        return self in (self.EPOCH, self.BATCH_AND_EPOCH)


class BasePredictionWriter(Callback):
    """Write predictions after each batch, at the end, or both; override one or both `write_` methods.

    On several ranks each writes what it predicted, so a file name must hold `trainer.global_rank`. `batch_indices` say
    which samples of the dataset they are; they are empty for streams, which have none. Of ranks that work on the same
    batches (tensor parallel) only the first writes, so the methods must not wait for other ranks.
    With "epoch", all predictions of a rank are held in host memory until then.

    Args:
        write_interval: "batch", "epoch" or "batch_and_epoch".

    Raises:
        MisconfigurationException: `write_interval` is none of them.

    Example::

        class Writer(BasePredictionWriter):
            def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
                torch.save((predictions, batch_indices), f"predictions_{trainer.global_rank}.pt")

        Trainer(callbacks=Writer("epoch")).predict(model, loader, return_predictions=False)
    """

    wants_batch_indices: ClassVar[bool] = True

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        allowed = [member.value for member in WriteInterval]
        if write_interval not in allowed:
            raise MisconfigurationException(
                f"`{type(self).__name__}(write_interval={write_interval!r})` says when to write. Choose one of"
                f" {', '.join(map(repr, allowed))}."
            )
        self.interval = WriteInterval(write_interval)

    @property
    def wants_predictions(self) -> bool:
        """Whether predictions must be kept until the end, also where `predict` does not return them."""
        return self.interval.on_epoch

    # ---- to override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the predictions of one batch.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            prediction: What `predict_step` returned.
            batch_indices: Indices of the batch's samples in the dataset.
            batch: The batch, on the device.
            batch_idx: Its index on this rank.
            dataloader_idx: Index of its loader.

        Raises:
            NotImplementedError: It is not overridden.
        """
        raise NotImplementedError(self._missing("write_on_batch_end"))

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any] | None,
    ) -> None:
        """Write all predictions of this rank.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            predictions: One for each batch; with several loaders a list of these.
            batch_indices: For each loader, also if there is one, a list with the dataset indices of each batch.

        Raises:
            NotImplementedError: It is not overridden.
        """
        raise NotImplementedError(self._missing("write_on_epoch_end"))

    def _missing(self, method: str) -> str:
        return (
            f"`{type(self).__name__}(write_interval={self.interval.value!r})` calls `{method}`, which is not written."
            " Override it, or choose another interval."
        )

    # ---- hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing to do; here so that subclasses can call it."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch, if batches are written."""
        if self.interval.on_batch and trainer.strategy.speaks_for_share:
            indices = trainer.predict_loop.current_batch_indices
            self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything, if that is asked for."""
        if self.interval.on_epoch and trainer.strategy.speaks_for_share:
            loop = trainer.predict_loop
            self.write_on_epoch_end(trainer, pl_module, loop.predictions, loop.epoch_batch_indices)
