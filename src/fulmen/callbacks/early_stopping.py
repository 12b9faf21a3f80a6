"""EarlyStopping: ends training when a metric stops improving."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fulmen.callbacks.monitor import MetricMonitor, close_names, final_at_train_epoch_end, worst_score
from fulmen.callbacks.sharding import check_takes_whole
from fulmen.utilities.memory import copy_to_host
from fulmen.utilities.rank_zero import rank_prefixed_message, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["EarlyStopping", "EarlyStoppingReason"]

log = logging.getLogger(__name__)


class EarlyStoppingReason(Enum):
    """Why `EarlyStopping` ended training."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(MetricMonitor):
    """Stop training when a monitored metric stops improving.

    Each check asks in this order: is the value finite, is the goal reached, has training diverged, did it improve.

    Args:
        monitor: Name of the logged metric.
        min_delta: An improvement must be larger than this.
        patience: How many checks (not epochs) without improvement are allowed.
        verbose: Say when the metric improves.
        mode: "min" if a smaller value is better, else "max".
        strict: Raise if the metric is missing when it is to be checked.
        check_finite: Stop when the metric is NaN or infinite.
        stopping_threshold: Stop when the metric is better than this.
        divergence_threshold: Stop when the metric is worse than this.
        check_on_train_epoch_end: Check when training, not validation, ends. Default: at the end of validation if that
            does not run exactly once at the end of each epoch.
        log_rank_zero_only: Log messages on the first process only.
        restore_best_weights: Put the weights of the best check back into the module when fit ends. They are kept in
            CPU memory and in every checkpoint, which grows by their size. `last` checkpoints keep the latest weights.
        start_from_epoch: Begin checking in this epoch (from 0).

    Attributes:
        best_score: Best value so far.
        wait_count: Checks since then.
        stopped_epoch: Epoch in which training was stopped; 0 if it was not.
        stopping_reason: Why, as an `EarlyStoppingReason`; `stopping_reason_message` in words.

    Raises:
        MisconfigurationException: `mode` is neither "min" nor "max".

    Example::

        Trainer(callbacks=EarlyStopping("val_loss", patience=5, restore_best_weights=True))
    """

    mode_dict: ClassVar[dict[str, Callable[..., Tensor]]] = {"min": torch.lt, "max": torch.gt}
    order_dict: ClassVar[dict[str, str]] = {"min": "<", "max": ">"}

    monitor: str

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        *,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode)
        # ---- settings
        self.patience = patience
        self.verbose = verbose
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self._check_on_train_epoch_end = check_on_train_epoch_end
        # signed, so that it can be added to the best score in either mode
        self.min_delta = min_delta if mode == "max" else -min_delta
        # ---- state
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = worst_score(mode)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._best_weights: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Key in the checkpoint; it holds metric and mode, so that several can be used at once."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def monitor_op(self) -> Callable[..., Tensor]:
        """`torch.lt` or `torch.gt`: tells whether its first argument is better."""
        return self.mode_dict[self.mode]

    # ---- state
    def state_dict(self) -> dict[str, Any]:
        """Return counters and the best score, and the best weights if they are to be restored."""
        state: dict[str, Any] = {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }
        return {**state, "best_weights": self._best_weights} if self.restore_best_weights else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, except `patience`: that is the user's to change."""
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = state_dict["best_score"]
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")
        self._best_weights = state_dict.get("best_weights") if self.restore_best_weights else None

    # ---- hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the weights can be restored under this strategy, and forget those of another run."""
        if stage == "fit" and trainer.global_step == 0:
            self._best_weights = None  # of the module of another run; those of a checkpoint are loaded after this
        if stage == "fit" and self.restore_best_weights:
            check_takes_whole(
                trainer, "EarlyStopping(restore_best_weights=True)", "keeps a copy of the weights",
                "Load `ModelCheckpoint.best_model_path` instead.",
            )  # fmt: skip

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, unless that is bound to the end of the training epoch."""
        if not final_at_train_epoch_end(trainer, self._check_on_train_epoch_end):
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, unless that is bound to the end of validation."""
        if final_at_train_epoch_end(trainer, self._check_on_train_epoch_end):
            self._check(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back, after all checkpoints are written."""
        if self._best_weights is not None:
            pl_module.load_state_dict(self._best_weights)
            self._say(f"Restored the weights with {self.monitor} = {float(self.best_score):.3f}.", trainer)

    # ---- one check
    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        if trainer.current_epoch < self.start_from_epoch or not self._is_logged(trainer):
            return
        value = torch.as_tensor(trainer.callback_metrics[self.monitor])
        current = value.detach().squeeze().cpu()  # sync: one per check
        reason, message = self._judge(current)
        if reason is EarlyStoppingReason.NOT_STOPPED:
            reason, message = self._count(current, trainer)
        elif reason is EarlyStoppingReason.STOPPING_THRESHOLD and self.restore_best_weights:
            self._best_weights = None  # the weights that reached the goal stay
        should_stop = trainer.strategy.reduce_boolean_decision(reason is not EarlyStoppingReason.NOT_STOPPED, all=False)
        if should_stop:
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
        if reason is not EarlyStoppingReason.NOT_STOPPED:
            self.stopping_reason, self.stopping_reason_message = reason, message
        if message is not None and (self.verbose or should_stop):
            self._say(message, trainer)

    def _judge(self, current: Tensor) -> tuple[EarlyStoppingReason, str | None]:
        """Look for a reason to stop that does not depend on earlier checks."""
        value = f"{self.monitor} = {float(current)}"
        better, worse = (self.order_dict[mode] for mode in (("min", "max") if self.mode == "min" else ("max", "min")))
        if self.check_finite and not torch.isfinite(current):
            best = f"Best score so far: {float(self.best_score):.3f}. Training stops."
            return EarlyStoppingReason.NON_FINITE_METRIC, f"Monitored metric {value} is not finite. {best}"
        if self.stopping_threshold is not None and self.monitor_op(current, self.stopping_threshold):
            message = f"Stopping threshold reached: {value} {better} {self.stopping_threshold}. Training stops."
            return EarlyStoppingReason.STOPPING_THRESHOLD, message
        if self.divergence_threshold is not None and self.monitor_op(-current, -self.divergence_threshold):
            message = f"Divergence threshold reached: {value} {worse} {self.divergence_threshold}. Training stops."
            return EarlyStoppingReason.DIVERGENCE_THRESHOLD, message
        return EarlyStoppingReason.NOT_STOPPED, None

    def _count(self, current: Tensor, trainer: Trainer) -> tuple[EarlyStoppingReason, str | None]:
        """Compare with the best score and count the checks without improvement."""
        if self.monitor_op(current - self.min_delta, self.best_score):
            gain = abs(float(self.best_score - current))
            by = f" by {gain:.3f} (min_delta = {abs(self.min_delta)})" if torch.isfinite(self.best_score) else ""
            self.best_score = current
            self.wait_count = 0
            if self.restore_best_weights:
                self._best_weights = _copy_of_weights(trainer)
            message = f"Metric {self.monitor} improved{by}. New best score: {float(current):.3f}."
            return EarlyStoppingReason.NOT_STOPPED, message
        self.wait_count += 1
        if self.wait_count < self.patience:
            return EarlyStoppingReason.NOT_STOPPED, None
        return EarlyStoppingReason.PATIENCE_EXHAUSTED, (
            f"Monitored metric {self.monitor} did not improve in the last {self.wait_count} checks."
            f" Best score: {float(self.best_score):.3f}. Training stops."
        )

    def _is_logged(self, trainer: Trainer) -> bool:
        if self.monitor in trainer.callback_metrics:
            return True
        message = (
            f"`EarlyStopping(monitor={self.monitor!r})`: this metric is not available when it is to be checked."
            f"{close_names(self.monitor, trainer.callback_metrics)} Log it with `self.log({self.monitor!r}, ...)`,"
            " or correct `monitor`."
        )
        if self.strict:
            raise RuntimeError(message)
        if self.verbose:
            rank_zero_warn(message, category=RuntimeWarning)
        return False

    def _say(self, message: str, trainer: Trainer) -> None:
        rank = trainer.global_rank if trainer.world_size > 1 else None
        if rank is None or rank == 0 or not self.log_rank_zero_only:
            log.info(rank_prefixed_message(message, None if self.log_rank_zero_only else rank))


def _copy_of_weights(trainer: Trainer) -> dict[str, Any]:
    """Copy the weights that validation evaluates, which may be an average, to CPU memory, tensor by tensor."""
    weights = trainer.lightning_module.state_dict()
    for callback in trainer.callbacks:
        if getattr(callback, "replaces_weights", False):
            weights = callback.evaluated_weights(trainer.lightning_module, weights)  # type: ignore[attr-defined]  # goes with the attribute
    return {
        name: copy_to_host(value) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in weights.items()
    }
