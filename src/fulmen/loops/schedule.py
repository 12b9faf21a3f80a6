"""What is due when: validation, and the steps of learning-rate schedulers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.loops.progress import FitProgress
    from fulmen.utilities.types import LRSchedulerConfig

__all__ = ["SchedulerSteps", "ValidationPlan", "validation_interval"]


def validation_interval(
    interval: int | float | None, num_batches: int | float, *, every_n_epochs: int | None, has_validation: bool
) -> int | float:
    """Return after how many training batches validation is due (`inf`: at the end of the epoch).

    Args:
        interval: `Trainer(val_check_interval=...)`: a count, or a fraction of the epoch; `None` is the whole epoch.
        num_batches: Training batches of an epoch.
        every_n_epochs: `Trainer(check_val_every_n_epoch=...)`; `None` lets a count run on over epochs.
        has_validation: Whether there is anything to validate.

    Raises:
        ValueError: A count is larger than the epoch, so that validation would never run.
        MisconfigurationException: A fraction of a loader without length.
    """
    if isinstance(interval, int) and not isinstance(interval, bool):
        if interval > num_batches and every_n_epochs is not None and has_validation:
            raise ValueError(
                f"`Trainer(val_check_interval={interval})` is more than the {num_batches} training batches of an epoch,"
                " so validation would never run. Choose less, or count over epochs with `check_val_every_n_epoch=None`."
            )
        return interval
    if interval is None or interval == 1.0:
        return num_batches
    if math.isinf(num_batches):
        raise MisconfigurationException(
            f"`Trainer(val_check_interval={interval})` is a fraction of the epoch, but the training dataloader has no"
            " length. Pass an int: validate every so many batches."
        )
    return max(1, int(num_batches * interval))


class ValidationPlan:
    """Decides after each training batch whether validation is due.

    Args:
        interval: Batches between validations, `inf` for the end of the epoch.
        every_n_epochs: Validate only in every n-th epoch; `None` counts batches over all epochs.
        seconds: Validate when so much time has passed, instead of counting batches.
        at_epoch_end: Validate after the last batch, also where it comes earlier than expected.
        decide: Makes the answer of the clock the same on all ranks, whose clocks differ; `None` with one process.
    """

    def __init__(
        self,
        interval: int | float,
        *,
        every_n_epochs: int | None,
        seconds: float | None = None,
        at_epoch_end: bool = False,
        decide: Callable[[bool], bool] | None = None,
    ) -> None:
        self.interval = interval
        self._every_n_epochs = every_n_epochs
        self._seconds = seconds
        self._at_epoch_end = at_epoch_end
        self._decide = decide
        self._last_time = time.monotonic()

    def epoch_is_due(self, epoch: int) -> bool:
        """Tell whether this epoch (from 0) validates at all."""
        return self._every_n_epochs is None or (epoch + 1) % self._every_n_epochs == 0

    def due(self, batch_idx: int, total_batches: int, is_last: bool) -> bool:
        """Tell whether validation is due after this batch of an epoch that validates."""
        if self._seconds is not None:
            is_up = time.monotonic() - self._last_time >= self._seconds
            return is_up if self._decide is None else self._decide(is_up)
        if self._at_epoch_end or math.isinf(self.interval):
            return is_last
        if self._every_n_epochs is None:
            return total_batches % self.interval == 0
        return (batch_idx + 1) % self.interval == 0

    def ran(self) -> None:
        """Note that a validation has ended."""
        self._last_time = time.monotonic()


class SchedulerSteps:
    """Steps the learning-rate schedulers at their interval and frequency.

    Frequencies count optimizer steps for `interval="step"`, epochs for `interval="epoch"`.
    """

    def __init__(
        self,
        configs: list[LRSchedulerConfig],
        module: LightningModule,
        progress: FitProgress,
        metrics: Callable[[], dict[str, Any]],
    ) -> None:
        self._module = module
        self._progress = progress
        self._metrics = metrics
        self.follow(configs)

    def follow(self, configs: list[LRSchedulerConfig]) -> None:
        """Step these schedulers from now on."""
        self._per_step = [c for c in configs if c.interval == "step" and not c.reduce_on_plateau]
        self._per_epoch = [c for c in configs if c.interval == "epoch" and not c.reduce_on_plateau]
        self._plateau_step = [c for c in configs if c.interval == "step" and c.reduce_on_plateau]
        self._plateau_epoch = [c for c in configs if c.interval == "epoch" and c.reduce_on_plateau]

    def after_batch(self, stepped: bool, is_last: bool) -> None:
        """Step the schedulers that follow batches, and on the last one those that follow epochs."""
        if stepped and self._per_step:
            self._step(self._per_step, self._progress.global_step)
        if is_last and self._per_epoch:
            self._step(self._per_epoch, self._progress.epochs.current.completed + 1)

    def after_validation(self, stepped: bool) -> None:
        """Step plateau schedulers that follow batches, when the batch's validation is over."""
        if stepped and self._plateau_step:
            self._step(self._plateau_step, self._progress.global_step)

    def after_epoch(self) -> None:
        """Step plateau schedulers that follow epochs."""
        if self._plateau_epoch:
            self._step(self._plateau_epoch, self._progress.epochs.current.completed + 1)

    def _step(self, configs: list[LRSchedulerConfig], count: int) -> None:
        if not self._module.automatic_optimization:  # then the user steps them
            return
        steps = self._progress.scheduler_steps
        for config in configs:
            if count % config.frequency != 0:
                continue
            metric = None
            if config.reduce_on_plateau and (metric := self._monitored(config)) is None:
                continue
            steps.increment("ready")
            self._module.lr_scheduler_step(config.scheduler, metric)
            steps.increment("completed")

    def _monitored(self, config: LRSchedulerConfig) -> Any:
        metrics = self._metrics()
        if config.monitor in metrics:
            return metrics[config.monitor]
        message = (
            f"The `ReduceLROnPlateau` scheduler waits for the metric {config.monitor!r}, which was not logged."
            f" Logged so far: {sorted(metrics)}. Log it with `self.log({config.monitor!r}, ...)`,"
            " or correct `monitor` in `configure_optimizers`."
        )
        if config.strict:
            raise MisconfigurationException(message)
        rank_zero_warn(message + " The scheduler was not stepped.", category=RuntimeWarning)
        return None
