"""The learning rate range test: raise the learning rate with each step, and look where the loss falls fastest.

L. N. Smith, *Cyclical Learning Rates for Training Neural Networks*, 2017, arXiv:1506.01186.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fulmen.core.callback import Callback
from fulmen.tuner.settings import Place, check_one_of, holders
from fulmen.tuner.undo import Snapshot, own_parts, with_own_workers
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require
from fulmen.utilities.options import check_number
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.step_outputs import loss_in

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["LRFinder", "LRSearch", "apply_learning_rate", "find_learning_rate", "learning_rate_holder"]

_MODES = ("exponential", "linear")
_SMOOTHING = 0.98  # weight of the past in the moving average of the loss
_NAMES = ("lr", "learning_rate")
_SCALED = ("lr", "initial_lr", "max_lr", "min_lr")  # entries of a parameter group that a scheduler reads


@dataclass(frozen=True, slots=True)
class LRSearch:
    """Settings of a search.

    Raises:
        MisconfigurationException: An unknown `mode`.
        ValueError: A number out of range.
    """

    min_lr: float = 1e-8
    max_lr: float = 1
    num_training: int = 100
    mode: Literal["exponential", "linear"] = "exponential"
    early_stop_threshold: float | None = 4.0

    def __post_init__(self) -> None:
        check_one_of("mode", self.mode, _MODES)
        check_number("", "num_training", self.num_training, "the optimizer steps of the search.", least=1, whole=True)
        check_number("", "min_lr", self.min_lr, "the first learning rate.", above=0)
        check_number("", "max_lr", self.max_lr, "the last learning rate.", above=0)
        if not self.max_lr > self.min_lr:
            raise ValueError(
                f"`max_lr={self.max_lr!r}` is not above `min_lr={self.min_lr!r}`, so there is no range to search."
                " Pass a larger `max_lr`."
            )
        why = "the search ends when the loss is this many times the best."
        check_number("", "early_stop_threshold", self.early_stop_threshold, why, above=0, optional=True)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: `min_lr` in the first, `max_lr` in the last.

        Args:
            step: Its number, from 0.
        """
        part = step / max(self.num_training - 1, 1)
        if self.mode == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * part
        return float(self.min_lr * (self.max_lr / self.min_lr) ** part)


@dataclass(slots=True)
class LRFinder:
    """What a search has found.

    Attributes:
        results: `"lr"`, the learning rates that were tried, and `"loss"`, the smoothed loss at each of them.

    Args:
        search: The settings of the search.

    Example::

        finder = Tuner(trainer).lr_find(model, update_attr=False)
        finder.plot(suggest=True)
        model.lr = finder.suggestion()
    """

    search: LRSearch = field(default_factory=LRSearch)
    results: dict[str, list[float]] = field(default_factory=lambda: {"lr": [], "loss": []})
    _idx: int | None = None

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """Return the learning rate at which the loss falls fastest per step of the search.

        Args:
            skip_begin: Points left out at the beginning, where the average settles.
            skip_end: Points left out at the end, where the loss explodes.

        Returns:
            A learning rate that was tried; None, with a warning, if fewer than two finite points are left.
        """
        end = len(self.results["loss"]) - skip_end
        points = [i for i in range(skip_begin, end) if math.isfinite(self.results["loss"][i])]
        if len(points) < 2:
            rank_zero_warn(
                f"`suggestion(skip_begin={skip_begin}, skip_end={skip_end})` has {len(points)} finite point(s) left of"
                f" {len(self.results['loss'])}, and needs two. Raise `num_training`, or skip fewer."
            )
            self._idx = None
            return None
        losses = torch.tensor([self.results["loss"][i] for i in points], dtype=torch.float64)
        self._idx = points[int(torch.gradient(losses)[0].argmin())]
        return self.results["lr"][self._idx]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Draw the loss over the learning rate.

        Args:
            suggest: Mark the suggestion.
            show: Show the figure in a window.
            ax: Axes of matplotlib to draw into; default a new figure.

        Returns:
            The figure of matplotlib.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        pyplot = require("matplotlib.pyplot", extra="history", for_="LRFinder.plot")
        if ax is None:
            figure, ax = pyplot.subplots()
        else:
            figure = ax.figure
        ax.plot(self.results["lr"], self.results["loss"])
        if self.search.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("loss")
        if suggest and (lr := self.suggestion()) is not None and self._idx is not None:
            ax.plot(lr, self.results["loss"][self._idx], "o", color="red", markersize=10)
        if show:
            pyplot.show()
        return figure

    def state_dict(self) -> dict[str, Any]:
        """Return settings and results as plain data."""
        return {"search": dataclasses.asdict(self.search), "results": {k: list(v) for k, v in self.results.items()}}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> LRFinder:
        """Make a finder of what `state_dict` returned."""
        return cls(LRSearch(**state["search"]), {key: list(values) for key, values in state["results"].items()})


class _Probe(Callback):
    """Sets the learning rate before each step and keeps the smoothed loss after it."""

    def __init__(self, finder: LRFinder, scales: list[list[float]], is_interrupted: Callable[[], bool]) -> None:
        self._finder = finder
        self._scales = scales
        self._is_interrupted = is_interrupted
        self._window: list[Tensor] = []
        self._average = 0.0
        self._best = math.inf
        self._steps_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.told.add("not finite")  # a loss that explodes is what the search is for

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        lr = self._finder.search.learning_rate(len(self._finder.results["lr"]))
        for optimizer, scales in zip(trainer.optimizers, self._scales, strict=True):
            for group, scale in zip(optimizer.param_groups, scales, strict=False):
                _set(group, "lr", lr * scale)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = loss_in(outputs)
        if isinstance(loss, Tensor):
            self._window.append(loss.detach())
        if trainer.global_step > self._steps_before:
            self._steps_before = trainer.global_step
            self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        if not self._window:
            raise MisconfigurationException(
                "The search for a learning rate has no loss to look at: `training_step` returned none. Return the loss,"
                " in manual optimization too."
            )
        losses = torch.stack([loss.float().mean() for loss in self._window])
        # the losses of an automatic window are divided by its length already
        total = losses.sum() if trainer.lightning_module.automatic_optimization else losses.mean()
        self._window.clear()
        loss = float(trainer.strategy.reduce(total))  # sync: in each step of a search, which must see the loss explode
        results, search = self._finder.results, self._finder.search
        self._average = _SMOOTHING * self._average + (1 - _SMOOTHING) * loss
        smoothed = self._average / (1 - _SMOOTHING ** (len(results["loss"]) + 1))
        results["lr"].append(search.learning_rate(len(results["lr"])))
        results["loss"].append(smoothed)
        threshold, num_steps = search.early_stop_threshold, len(results["loss"])
        explodes = threshold is not None and num_steps > 1 and not smoothed <= threshold * abs(self._best)
        if explodes or num_steps >= search.num_training or self._is_interrupted():
            trainer.should_stop = True
        if smoothed < self._best or num_steps == 1:
            self._best = smoothed


def find_learning_rate(trainer: Trainer, module: LightningModule, search: LRSearch, reference: Any = None) -> LRFinder:
    """Search inside a running fit, and put all back to where it was.

    Args:
        trainer: The Trainer, in `on_fit_start`, `on_train_start` or `on_train_epoch_start`.
        module: The module.
        search: The settings.
        reference: The learning rate that the module has as attribute; which parameter group has the rates on the x axis
            follows from it.

    Returns:
        The points that were tried.

    Raises:
        MisconfigurationException: There is not exactly one optimizer, or no loss.
    """
    place = Place(trainer, "lr_find")
    if len(trainer.optimizers) != 1:
        raise MisconfigurationException(
            f"`lr_find` works with one optimizer, but `configure_optimizers` gave {len(trainer.optimizers)}: one"
            " learning rate would have to be searched for each. Return one optimizer, e.g. with several groups."
        )
    finder = LRFinder(search)
    snapshot = Snapshot(trainer, module, trainer.datamodule, trainer.sources.given)
    strategy, schedulers = trainer.strategy, trainer.lr_scheduler_configs
    scales = [_scales(optimizer, reference) for optimizer in trainer.optimizers]
    try:
        with own_parts(trainer), ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(True))
            stack.enter_context(torch.autograd.set_detect_anomaly(trainer.detect_anomaly))
            trainer.callbacks = [_Probe(finder, scales, place.is_interrupted)]
            trainer.sources.replace_given(with_own_workers)
            if module.automatic_optimization:  # else the module steps them itself
                strategy.lr_scheduler_configs = []
            place.begin()
            module.zero_grad(set_to_none=True)
            loop = trainer.fit_loop
            loop.limits = type(loop.limits)(max_steps=search.num_training, endless=True)
            trainer.limit_val_batches = 0
            stack.callback(loop.release)
            stack.callback(loop.forget_data)
            loop.run()
    finally:
        strategy.lr_scheduler_configs = schedulers
        snapshot.restore()
    place.leave_if_interrupted()
    return finder


def _scales(optimizer: Optimizer, reference: Any) -> list[float]:
    """The learning rate of each group in terms of the one that is searched."""
    rates = [_base_rate(group) for group in optimizer.param_groups]
    is_own = isinstance(reference, (int, float)) and any(math.isclose(rate, reference) for rate in rates)
    unit = float(reference) if is_own else max(rates)
    return [rate / unit for rate in rates] if unit > 0 else [1.0] * len(rates)


def _base_rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))


# ---- what is done with the result
def learning_rate_holder(module: LightningModule, datamodule: Any, attr_name: str) -> str:
    """Return the name of the attribute that holds the learning rate.

    Args:
        module: It or its hyperparameters may have it.
        datamodule: As well.
        attr_name: The name; empty to look for `lr` and `learning_rate`.

    Raises:
        AttributeError: Nobody has it.
    """
    names = (attr_name,) if attr_name else _NAMES
    for name in names:
        if holders(module, datamodule, name):
            return name
    raise AttributeError(
        f"`lr_find` is to set {' or '.join(map(repr, names))}, but neither `{type(module).__name__}` nor its `hparams`,"
        " nor the datamodule, have such an attribute. Name it by `attr_name=...`, or pass `update_attr=False`."
    )


def apply_learning_rate(trainer: Trainer, before: Any, lr: float, *, is_new_fit: bool) -> None:
    """Let the running fit go on with another learning rate, which the attribute has already.

    Args:
        trainer: The Trainer.
        before: The value of the attribute before.
        lr: The new one.
        is_new_fit: Nothing was trained yet: `configure_optimizers` is called again, so that schedulers know it, too.
            Otherwise the rates of all groups, and the base rates of schedulers, are multiplied by new / old.
    """
    old = [[_base_rate(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    if is_new_fit:
        trainer.strategy.setup_optimizers(trainer)
        trainer.strategy.setup_precision_plugin()
        new = [[_base_rate(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        if new != old:
            return
    for optimizer in trainer.optimizers:
        scales = _scales(optimizer, before)
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            factor = lr * scale / _base_rate(group) if _base_rate(group) else 0.0
            for key in _SCALED:
                if key in group:
                    _set(group, key, group[key] * factor if factor else lr)
    for config in trainer.lr_scheduler_configs:
        _reread_base_rates(config.scheduler)


def _reread_base_rates(scheduler: Any) -> None:
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [_base_rate(group) for group in scheduler.optimizer.param_groups]
    for each in getattr(scheduler, "_schedulers", ()):
        _reread_base_rates(each)


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(group.get(key), Tensor):
        group[key].fill_(value)  # a graph may hold it
    else:
        group[key] = value
