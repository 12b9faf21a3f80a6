"""The user's side of the cases: a tiny module and a callback, on the base classes of the package measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.frameworks import Framework
from benchmarks.plain import LEARNING_RATE
from benchmarks.timing import IN_FEATURES

__all__ = ["make_callback", "make_model"]


class Steps:
    """What a user writes; `make_model` adds the package's base class."""

    if TYPE_CHECKING:  # of the base class
        log: Callable[..., None]
        optimizers: Callable[..., Any]
        manual_backward: Callable[[Tensor], None]

    layer: nn.Linear
    names: tuple[str, ...] = ()
    prog_bar = False
    schedules = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss: Tensor = self.layer(batch).sum()
        for name in self.names:
            self.log(name, loss, prog_bar=self.prog_bar)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Compute the loss."""
        loss = self.layer(batch).sum()
        for name in self.names:
            self.log(name, loss)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        """Return the scores."""
        return self.layer(batch)

    def configure_optimizers(self) -> Any:
        """Return SGD, with a scheduler that follows steps if asked for."""
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=LEARNING_RATE)
        if not self.schedules:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ManualSteps(Steps):
    """The same with manual optimization."""

    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]  # nothing to return
        """Optimize."""
        optimizer = self.optimizers()
        loss = self.layer(batch).sum()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def make_model(
    framework: Framework,
    *,
    num_logged: int = 0,
    prog_bar: bool = False,
    schedules: bool = False,
    is_manual: bool = False,
) -> Any:
    """Return a new tiny model.

    Args:
        framework: The package it is for.
        num_logged: How many scalars each step logs.
        prog_bar: Show them in the progress bar.
        schedules: Have a learning-rate scheduler step after each batch.
        is_manual: Optimize in `training_step`.
    """
    model: Any = type("Model", (ManualSteps if is_manual else Steps, framework.module), {})()
    model.layer = nn.Linear(IN_FEATURES, 2)
    model.names = tuple(f"scalar_{number}" for number in range(num_logged))
    model.prog_bar = prog_bar
    model.schedules = schedules
    model.automatic_optimization = not is_manual
    return model


class BatchHooks:
    """A callback that has to be called twice a batch, but does nothing."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Do nothing."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Do nothing."""


def make_callback(framework: Framework) -> Any:
    """Return a new callback that overrides the batch hooks."""
    return type("Callback", (BatchHooks, framework.callback), {})()
