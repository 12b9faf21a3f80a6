"""Timer: measures how long each stage takes and ends training in time."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fulmen.core.callback import Callback
from fulmen.core.states import RunningStage
from fulmen.utilities.duration import parse_duration
from fulmen.utilities.enums import LightningEnum
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["Interval", "Timer"]

_STAGES = tuple(stage.value for stage in RunningStage)  # plain text, for checkpoints


class Interval(LightningEnum):
    """When `Timer` looks at the clock."""

    step = "step"
    epoch = "epoch"


class Timer(Callback):
    """Measure the time of each stage, and stop training when a duration is used up.

    Training then stops after the optimizer step, or inside a validation, which the resumed run repeats. If the run
    saves checkpoints, `interrupted.ckpt` is written at that point. The time trained before is kept in checkpoints: a
    resumed run has what was left.

    Args:
        duration: Time for training: "DD:HH:MM:SS", a timedelta, or its keyword arguments as a dict; `None` only
            measures.
        interval: Look at the clock after each batch, also of validation ("step"), or each epoch ("epoch").
        verbose: Say when the time is up.

    Raises:
        MisconfigurationException: `duration` or `interval` cannot be understood.

    Example::

        timer = Timer(duration="00:12:00:00")
        Trainer(callbacks=timer).fit(model)
        print(timer.time_elapsed("train"), timer.time_remaining())
    """

    def __init__(
        self,
        duration: str | timedelta | dict[str, int] | None = None,
        interval: str = Interval.step,
        verbose: bool = True,
    ) -> None:
        if interval not in set(Interval):
            raise MisconfigurationException(
                f"`Timer(interval={interval!r})`: the clock can be looked at after each 'step' or each 'epoch'."
            )
        self._duration = (
            None if duration is None else parse_duration(duration, setting="Timer(duration=...)").total_seconds()
        )
        self._interval = Interval(interval)
        self._verbose = verbose
        self._start_time: dict[str, float | None] = dict.fromkeys(_STAGES)
        self._end_time: dict[str, float | None] = dict.fromkeys(_STAGES)
        self._offset = 0.0  # seconds trained before this process
        self._stop_at: float | None = None  # on the clock of `time.monotonic`
        self._has_said = False
        self._looks_each_step = self._duration is not None and self._interval == Interval.step

    # ---- reading
    def start_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """Return when a stage began, in seconds of `time.monotonic`; `None` if it did not."""
        return self._start_time[stage]

    def end_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """Return when a stage ended, in seconds of `time.monotonic`; `None` if it did not."""
        return self._end_time[stage]

    def time_elapsed(self, stage: str = RunningStage.TRAINING) -> float:
        """Return the seconds spent in a stage, for training including those before a resume."""
        start, end = self.start_time(stage), self.end_time(stage)
        offset = self._offset if stage == "train" else 0
        if start is None:
            return offset
        return (time.monotonic() if end is None else end) - start + offset

    def time_remaining(self, stage: str = RunningStage.TRAINING) -> float | None:
        """Return the seconds left of the duration; `None` without one."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    # ---- hooks
    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Do not begin at all if a resumed run has no time left."""
        self._stop_at, self._has_said = None, False
        if self._duration is not None and trainer.strategy.broadcast(self.time_elapsed("train") >= self._duration):
            trainer.should_stop = True
            self._say()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of training."""
        self._begin("train")
        if self._duration is not None:
            self._stop_at = time.monotonic() + self._duration - self._offset

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        self._end_time["train"] = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock, if that is to be done each step."""
        if self._looks_each_step and self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._note_time_is_up(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock inside a validation of training, too, if that is to be done each step."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.on_train_batch_end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock, if that is to be done each epoch."""
        if self._interval == Interval.epoch and self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._note_time_is_up(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of validation, or of the sanity check."""
        self._begin("sanity_check" if trainer.sanity_checking else "validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of validation, or of the sanity check."""
        self._end_time["sanity_check" if trainer.sanity_checking else "validate"] = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of testing."""
        self._begin("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of testing."""
        self._end_time["test"] = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of predicting."""
        self._begin("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of predicting."""
        self._end_time["predict"] = time.monotonic()

    # ---- state
    def state_dict(self) -> dict[str, Any]:
        """Return the seconds spent in each stage."""
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in _STAGES}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count the training time of an earlier run."""
        self._offset = state_dict.get("time_elapsed", {}).get("train", 0.0)
        self._start_time["train"] = self._end_time["train"] = None

    def _begin(self, stage: str) -> None:
        self._start_time[stage] = time.monotonic()
        self._end_time[stage] = None

    def _note_time_is_up(self, trainer: Trainer) -> None:
        """Ask for an end; the loops agree over ranks, whose clocks differ, and save before they stop."""
        trainer.signals.note_time_is_up()
        self._say()

    def _say(self) -> None:
        if self._verbose and not self._has_said:
            elapsed = timedelta(seconds=int(self.time_elapsed("train")))
            rank_zero_info(f"Time limit reached: trained for {elapsed}. Training stops.")
        self._has_said = True
