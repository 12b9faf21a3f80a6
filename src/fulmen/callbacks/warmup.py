"""WarmupLR: small learning rates at the beginning, under any scheduler."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["WarmupLR"]

_SHAPES = ("linear", "exponential")


class WarmupLR(Callback):
    """Scale the learning rate up from `start_factor` to 1 over the first optimizer steps.

    Before each step the learning rate that the scheduler gives is multiplied by the factor, and put back right after
    it. So schedulers never see the factor: any of them can be used, also one that computes from the current learning
    rate or waits for a metric, or none. A step skipped by a gradient scaler does not count.

    Args:
        warmup: Number of optimizer steps, or as a float below 1 the fraction of all steps of the run. Each optimizer
            counts its own steps.
        shape: "linear" adds, "exponential" multiplies by the same amount each step.
        start_factor: Factor of the first step, above 0 and at most 1.

    Raises:
        ValueError: An argument is out of range.
        MisconfigurationException: A fraction is asked for, but the run has no known end.

    Example::

        Trainer(max_epochs=10, callbacks=WarmupLR(0.05))
    """

    def __init__(
        self, warmup: int | float, *, shape: Literal["linear", "exponential"] = "linear", start_factor: float = 0.01
    ) -> None:
        if warmup < 0 or (isinstance(warmup, float) and warmup >= 1):
            raise ValueError(f"`WarmupLR({warmup!r})`: give a number of steps as an int >= 0, or a fraction below 1.0.")
        if shape not in _SHAPES:
            raise ValueError(f"`WarmupLR(shape={shape!r})`: the shape is one of {_SHAPES}.")
        if not 0 < start_factor <= 1:
            raise ValueError(f"`WarmupLR(start_factor={start_factor!r})` must be above 0 and at most 1.")
        # ---- settings
        self.warmup = warmup
        self.shape = shape
        self.start_factor = start_factor
        # ---- state
        self._num_steps: int | None = None if isinstance(warmup, float) else warmup
        self._steps_done: list[int] = []  # one count per optimizer
        self._optimizers: list[Optimizer] = []
        self._unscaled: dict[int, list[Any]] = {}  # learning rates to put back, by number of the optimizer
        self._depth: dict[int, int] = {}  # a `step` that calls `super().step` runs the hooks once for each of them
        self._handles: list[RemovableHandle] = []

    # ---- the factor
    def factor_at(self, step: int) -> float:
        """Return the factor of an optimizer step, counted from 0."""
        if self._num_steps is None or step >= self._num_steps:
            return 1.0
        done = step / self._num_steps
        if self.shape == "linear":
            return self.start_factor + (1 - self.start_factor) * done
        return float(self.start_factor ** (1 - done))

    def factor_of(self, optimizer: Optimizer) -> float:
        """Return the factor of an optimizer's next step."""
        for index, known in enumerate(self._optimizers):
            if known is optimizer:
                return self.factor_at(self._steps_done[index])
        return 1.0

    # ---- hooks
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizers; a run that begins anew warms up anew, though the callback served another."""
        if trainer.global_step == 0:
            self._steps_done = []
            self._num_steps = None if isinstance(self.warmup, float) else self.warmup
        if self._num_steps is None:
            self._num_steps = self._fraction_of(trainer)
        self._optimizers = list(trainer.optimizers)
        self._steps_done += [0] * (len(self._optimizers) - len(self._steps_done))
        self._detach()
        for index, optimizer in enumerate(self._optimizers):
            if self._steps_done[index] < self._num_steps:
                self._handles.append(optimizer.register_step_pre_hook(partial(self._before_step, index)))
                self._handles.append(optimizer.register_step_post_hook(partial(self._after_step, index)))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the optimizers when all are warm, so that their steps cost nothing more."""
        if self._handles and all(self.factor_at(steps) == 1.0 for steps in self._steps_done):
            self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the learning rates back if a step was interrupted."""
        for index in list(self._unscaled):
            self._put_back(index)
        self._depth.clear()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach from the optimizers."""
        self._detach()
        self._optimizers = []

    # ---- state
    def state_dict(self) -> dict[str, Any]:
        """Return how many steps each optimizer did, and of how many."""
        return {"warmup": self.warmup, "num_steps": self._num_steps, "steps_done": list(self._steps_done)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the warm-up; its length stays what it was unless `warmup` was changed."""
        self._steps_done = list(state_dict["steps_done"])
        if state_dict["warmup"] == self.warmup:
            self._num_steps = state_dict["num_steps"]

    # ---- one optimizer step
    def _before_step(self, index: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth[index] = self._depth.get(index, 0) + 1
        factor = self.factor_at(self._steps_done[index])
        if factor == 1.0 or self._depth[index] > 1:
            return
        unscaled = []
        for group in optimizer.param_groups:
            rate = group["lr"]
            if isinstance(rate, Tensor):  # captured by a graph or compiled: the tensor itself must change
                unscaled.append(rate.clone())
                rate.mul_(factor)
            else:
                unscaled.append(rate)
                group["lr"] = rate * factor
        self._unscaled[index] = unscaled

    def _after_step(self, index: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth[index] -= 1
        if self._depth[index] == 0:
            self._put_back(index)
            self._steps_done[index] += 1

    def _put_back(self, index: int) -> None:
        # the value itself is kept, since dividing by the factor again would not give the same bits
        for group, rate in zip(self._optimizers[index].param_groups, self._unscaled.pop(index, []), strict=False):
            if isinstance(rate, Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _fraction_of(self, trainer: Trainer) -> int:
        total = trainer.estimated_stepping_batches
        if math.isinf(total):
            raise MisconfigurationException(
                f"`WarmupLR({self.warmup})` is a fraction of the run, but the number of its steps is not known."
                " Set `max_epochs` (with a dataloader that has a length) or `max_steps`, or give a number of steps."
            )
        return round(self.warmup * total)
