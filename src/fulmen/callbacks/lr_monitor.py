"""LearningRateMonitor: learning rates as a logged curve."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import Optimizer

from fulmen.callbacks.warmup import WarmupLR
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["LearningRateMonitor"]


@dataclass(frozen=True, slots=True)
class _Curve:
    """One optimizer under one name, and when its scheduler changes it."""

    name: str
    optimizer: Optimizer
    intervals: frozenset[str]


class LearningRateMonitor(Callback):
    """Log the learning rate of every parameter group, as the next step will use it (a `WarmupLR` included).

    Names are `lr-<Optimizer>` or the `name` of the scheduler's configuration, with `-1`, `-2` for further ones of the
    same name, and `/pg1`, `/pg2` or `/<name>` for the parameter groups if there are several.

    Args:
        logging_interval: "step" or "epoch"; `None` follows the interval of each scheduler.
        log_momentum: Log the momentum too, under `<name>-momentum` (Adam's first beta counts as one).
        log_weight_decay: Log the weight decay too, under `<name>-weight_decay`.

    Attributes:
        lrs: All logged learning rates by name.
        last_momentum_values: The latest momentum by name.
        last_weight_decay_values: The latest weight decay by name.

    Raises:
        MisconfigurationException: An unknown interval, or at the start of training no logger, or two parameter groups
            of the same name.

    Example::

        Trainer(callbacks=LearningRateMonitor(logging_interval="step"))
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise MisconfigurationException(
                f"`LearningRateMonitor(logging_interval={logging_interval!r})`: it should be 'step', 'epoch' or `None`."
            )
        # ---- settings
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        # ---- state
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}
        self._curves: list[_Curve] = []
        self._warmups: list[WarmupLR] = []
        self._follows_steps = False

    # ---- hooks
    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Name all learning rates."""
        if not trainer.loggers:
            raise MisconfigurationException(
                "Cannot use `LearningRateMonitor` with a `Trainer` that has no logger."
                " Pass `Trainer(logger=...)`, or remove the callback."
            )
        self._curves = _curves_of(trainer)
        self._warmups = [callback for callback in trainer.callbacks if isinstance(callback, WarmupLR)]
        self._follows_steps = self.logging_interval == "step" or (
            self.logging_interval is None and any("step" in curve.intervals for curve in self._curves)
        )
        self.lrs = {name: [] for curve in self._curves for name, _ in _named_groups(curve)}
        self.last_momentum_values = {f"{name}-momentum": None for name in self.lrs}
        self.last_weight_decay_values = {f"{name}-weight_decay": None for name in self.lrs}

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Log what changes with steps, every `log_every_n_steps`."""
        if not self._follows_steps or trainer.log_every_n_steps == 0:
            return
        if (trainer.fit_loop.batches_that_stepped + 1) % trainer.log_every_n_steps == 0:
            self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Log what changes with epochs."""
        if self.logging_interval != "step":
            self._log(trainer, "epoch")

    # ---- reading and logging
    def _log(self, trainer: Trainer, interval: str) -> None:
        row: dict[str, float] = {}
        for curve in self._curves:
            if self.logging_interval is not None or interval in curve.intervals:
                row.update(self._read(curve))
        if not row:
            return
        for logger in trainer.loggers:
            step = trainer.metrics.step_of(logger, trainer.fit_loop.batches_that_stepped)
            logger.log_metrics(row, step=step)
        if trainer.is_global_zero:
            trainer.history.add(row, trainer.fit_loop.batches_that_stepped, trainer.current_epoch)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in row.items()})

    def _read(self, curve: _Curve) -> dict[str, float]:
        factor = 1.0
        for warmup in self._warmups:
            factor *= warmup.factor_of(curve.optimizer)
        groups = _named_groups(curve)
        if len(groups) > 1 and curve.name in self.lrs:  # a group was added: the first one gets a name of its own
            self.lrs[groups[0][0]] = self.lrs.pop(curve.name)
        row: dict[str, float] = {}
        for name, group in groups:
            row[name] = float(group["lr"]) * factor
            self.lrs.setdefault(name, []).append(row[name])
            if self.log_momentum:
                betas = group.get("betas")
                momentum = float(group.get("momentum", 0.0) if betas is None else betas[0])
                row[f"{name}-momentum"] = self.last_momentum_values[f"{name}-momentum"] = momentum
            if self.log_weight_decay:
                decay = float(group.get("weight_decay", 0.0))
                row[f"{name}-weight_decay"] = self.last_weight_decay_values[f"{name}-weight_decay"] = decay
        return row


def _curves_of(trainer: Trainer) -> list[_Curve]:
    """Name the optimizers, first those with schedulers in the order of these, then the rest."""
    wanted = [(config.name, config.scheduler.optimizer, {config.interval}) for config in trainer.lr_scheduler_configs]
    scheduled = {id(optimizer) for _, optimizer, _ in wanted}
    # no scheduler, no interval of its own: logged at both
    free = [optimizer for optimizer in trainer.optimizers if id(optimizer) not in scheduled]
    wanted += [(None, optimizer, {"step", "epoch"}) for optimizer in free]
    curves, seen = [], Counter[str]()
    for given_name, optimizer, intervals in wanted:
        name = given_name or f"lr-{type(optimizer).__name__}"
        suffix = f"-{seen[name]}" if seen[name] else ""
        seen[name] += 1
        curves.append(_Curve(name + suffix, optimizer, frozenset(intervals)))
    return curves


def _named_groups(curve: _Curve) -> list[tuple[str, dict[str, Any]]]:
    groups = curve.optimizer.param_groups
    if len(groups) == 1 and "name" not in groups[0]:
        return [(curve.name, groups[0])]
    if len(groups) == 1:
        return [(f"{curve.name}/{groups[0]['name']}", groups[0])]
    names = [str(group.get("name", f"pg{number}")) for number, group in enumerate(groups, start=1)]
    if doubled := sorted(name for name, count in Counter(names).items() if count > 1):
        raise MisconfigurationException(
            f"A single optimizer cannot have several parameter groups of the same name, but {curve.name!r} has"
            f" {doubled}. Give each group its own `name`."
        )
    return [(f"{curve.name}/{name}", group) for name, group in zip(names, groups, strict=True)]
