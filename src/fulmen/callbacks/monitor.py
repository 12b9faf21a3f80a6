"""What `EarlyStopping` and `ModelCheckpoint` share: a monitored metric, and when in an epoch it is final."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = [
    "MetricMonitor",
    "close_names",
    "final_at_train_epoch_end",
    "has_validation",
    "is_better",
    "looks_misspelt",
    "worst_score",
]

_MODES = ("min", "max")
# "loss" and "val_loss" score 0.67, "val_los" and "val_loss" 0.93
_SIMILAR_ENOUGH = 0.75


class MetricMonitor(Callback):
    """Follows one logged metric and knows which direction is better.

    Args:
        monitor: Name of the metric, as given to `self.log`.
        mode: "min" if smaller is better, "max" if larger is.

    Raises:
        MisconfigurationException: `mode` is neither.
    """

    is_monitor: ClassVar[bool] = True  # the Trainer tells it of the end of an epoch after all who log metrics

    def __init__(self, monitor: str | None, mode: str) -> None:
        if mode not in _MODES:
            raise MisconfigurationException(
                f"`{type(self).__name__}(mode={mode!r})`: `mode` says which value is better and can be 'min' or 'max'."
            )
        self.monitor = monitor
        self.mode = mode

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn before the first epoch if `monitor` looks like a misspelt validation metric."""
        names = set(trainer.callback_metrics)  # forgotten after this hook
        if self.monitor is None or not names or self.monitor in names:
            return
        if looks_misspelt(self.monitor, names):
            rank_zero_warn(
                f"`{type(self).__name__}(monitor={self.monitor!r})`: validation logged no metric of this name in the"
                f" sanity check.{close_names(self.monitor, names)} If training does not log it either, nothing can be"
                " monitored: correct `monitor`, or log it with `self.log`."
            )


def looks_misspelt(monitor: str, validation_names: Iterable[str]) -> bool:
    """Tell whether a name that validation did not log was meant to come from there, rather than from training."""
    if monitor.lower().startswith("train"):
        return False
    return "val" in monitor.lower() or bool(difflib.get_close_matches(monitor, validation_names, 1, _SIMILAR_ENOUGH))


def close_names(monitor: str, names: Iterable[str]) -> str:
    """Return a sentence that names the logged metrics, the most similar ones first."""
    names = sorted(names)
    matches = difflib.get_close_matches(monitor, names, 3)
    hint = f" Did you mean {' or '.join(repr(name) for name in matches)}?" if matches else ""
    return f"{hint} Logged: {names}."


def is_better(mode: str, score: Tensor, than: Tensor) -> bool:
    """Compare two scores; equal ones and NaN are not better."""
    return bool(score < than) if mode == "min" else bool(score > than)


def worst_score(mode: str) -> Tensor:
    """Return the score that every other one beats."""
    return torch.tensor(float("inf") if mode == "min" else -float("inf"))


def final_at_train_epoch_end(trainer: Trainer, setting: bool | None) -> bool:
    """Tell whether monitored values are looked at when the training epoch ends, not when validation does.

    Args:
        trainer: The running trainer.
        setting: The user's choice; `None` chooses the end of the epoch if each epoch ends with exactly one validation,
            or has none at all.
    """
    if setting is not None:
        return setting
    return not has_validation(trainer) or _validates_once_per_epoch(trainer)


def has_validation(trainer: Trainer) -> bool:
    """Tell whether this fit validates anything."""
    batches = trainer.fit_loop.val_loop.batches  # none until the validation dataloaders are loaded
    return trainer.enable_validation and (batches is None or batches.has_any)


def _validates_once_per_epoch(trainer: Trainer) -> bool:
    interval = trainer.val_check_interval
    # `1` means after each batch and `1.0` after the epoch, though they are equal
    whole_epoch = interval is None or (isinstance(interval, float) and interval == 1.0)
    return whole_epoch and trainer.val_check_seconds is None and trainer.check_val_every_n_epoch in (None, 1)
