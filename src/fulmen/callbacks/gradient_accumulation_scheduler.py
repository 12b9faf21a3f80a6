"""GradientAccumulationScheduler: another accumulation factor from some epoch on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["GradientAccumulationScheduler"]


class GradientAccumulationScheduler(Callback):
    """Change `accumulate_grad_batches` by a schedule of epochs.

    Args:
        scheduling: Epoch (from 0) to the factor that holds from there on; before the first epoch named it is 1.

    Raises:
        TypeError: `scheduling` is no dict, or an empty one.
        MisconfigurationException: An epoch is not an int >= 0, or a factor not an int >= 1.

    Example::

        # single batches in the first five epochs, then windows of four
        Trainer(callbacks=GradientAccumulationScheduler({5: 4}))
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        if not isinstance(scheduling, dict) or not scheduling:
            raise TypeError(
                f"`GradientAccumulationScheduler({scheduling!r})`: `scheduling` must be a dict with at least one entry,"
                " epoch to factor, such as {4: 2}."
            )
        if wrong := [epoch for epoch in scheduling if not isinstance(epoch, int) or epoch < 0]:
            raise MisconfigurationException(
                f"`GradientAccumulationScheduler({scheduling!r})`: an epoch should be an int >= 0, got {wrong}."
            )
        if wrong := [factor for factor in scheduling.values() if not isinstance(factor, int) or factor < 1]:
            raise MisconfigurationException(
                f"`GradientAccumulationScheduler({scheduling!r})`: a factor should be an int >= 1, got {wrong}."
            )
        self.scheduling = scheduling if 0 in scheduling else {**scheduling, 0: 1}
        self.epochs = sorted(self.scheduling)
        self._has_set_factor = False

    def going_to_accumulate_grad_batches(self) -> bool:
        """Tell whether any factor is above 1."""
        return any(factor > 1 for factor in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Return the factor of an epoch (from 0)."""
        return self.scheduling[max(start for start in self.epochs if start <= epoch)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that nobody else accumulates; set the factor, also when training resumes inside an epoch."""
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                "`GradientAccumulationScheduler` changes when automatic optimization steps, but the module has"
                " `automatic_optimization = False`. Accumulate in `training_step`, or remove the callback."
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"`Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches})` and"
                " `GradientAccumulationScheduler` both set the factor. Remove one of them."
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise RuntimeError(
                f"`{type(trainer.strategy).__name__}` accumulates gradients by itself, with one factor for the whole"
                " run. Remove `GradientAccumulationScheduler` and pass `Trainer(accumulate_grad_batches=...)`."
            )
        self.on_train_epoch_start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Set the factor of this epoch."""
        self._has_set_factor = True
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the trainer as it was, so that it can fit again."""
        if self._has_set_factor:  # else the fit was refused, and the factor is the user's
            self._has_set_factor = False
            trainer.accumulate_grad_batches = 1
