"""When a `ModelCheckpoint` saves after a batch, and whether the monitored value belongs to those weights."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["BatchTrigger", "ScoreSource"]

_Origin: TypeAlias = Literal["training step", "validation", "training epoch"]
_ORIGINS = ("training step", "validation", "training epoch")
_ALWAYS_THERE = ("epoch", "step")  # counters that can be monitored without being logged


class BatchTrigger:
    """Tells after which batches a save is due, by optimizer steps or by time.

    Args:
        every_n_steps: Optimizer steps between saves; 0 for never.
        interval: Time between saves; `None` for never.
    """

    def __init__(self, every_n_steps: int, interval: timedelta | None) -> None:
        self.is_used = bool(every_n_steps) or interval is not None
        self.watches_time = interval is not None
        self.next_step: float = math.inf
        self._every_n_steps = every_n_steps
        self._interval_s = math.inf if interval is None else interval.total_seconds()
        self._due_time = math.inf  # on the clock of `time.monotonic`
        self._elapsed_s = 0.0  # of the interval, when an earlier run ended
        self._ranks_must_agree = False

    def start(self, trainer: Trainer) -> None:
        """Begin to count at the present optimizer step, and now, less what an earlier run has waited already."""
        self._due_time = time.monotonic() + self._interval_s - self._elapsed_s
        self._elapsed_s = 0.0
        self._ranks_must_agree = trainer.world_size > 1
        self._advance(trainer.global_step)

    def elapsed_s(self) -> float:
        """Return how much of the interval has passed, in seconds."""
        if self._due_time == math.inf:
            return self._elapsed_s
        return min(max(time.monotonic() - self._due_time + self._interval_s, 0.0), self._interval_s)

    def go_on(self, elapsed_s: float) -> None:
        """Let the next `start` count from a state of an earlier run.

        Args:
            elapsed_s: How much of the interval had passed.
        """
        self._elapsed_s = min(max(elapsed_s, 0.0), self._interval_s) if self.watches_time else 0.0

    def time_may_be_up(self) -> bool:
        """Tell whether it is worth asking `is_due` about the time."""
        return self._ranks_must_agree or time.monotonic() >= self._due_time

    def is_due(self, trainer: Trainer) -> bool:
        """Tell whether a save is due; asked once for each batch."""
        step = trainer.global_step
        if step >= self.next_step:
            self._advance(step)
            return True
        # inside an accumulation window the gradients so far would be lost
        if not self.watches_time or trainer.fit_loop.has_started_window:
            return False
        if trainer.strategy.broadcast(time.monotonic() >= self._due_time):
            self._due_time = time.monotonic() + self._interval_s
            return True
        return False

    def _advance(self, step: int) -> None:
        # a manual step may jump over a multiple: what matters is that one was passed
        every = self._every_n_steps
        self.next_step = (step // every + 1) * every if every else math.inf


class ScoreSource:
    """Knows after which optimizer step the monitored metric was computed last.

    A metric from validation stays in `callback_metrics` while training goes on: it is then the score of older weights.

    Args:
        monitor: Name of the metric; `None` if nothing is monitored.
    """

    def __init__(self, monitor: str | None) -> None:
        self._monitor = monitor
        self._step = -1
        self.origin: _Origin | None = None

    def note(self, trainer: Trainer, origin: _Origin) -> None:
        """Note that something that logs metrics has ended; where the metric appears first, there it comes from."""
        if self._monitor is None or self._monitor not in trainer.callback_metrics:
            return
        if self.origin is None:
            self.origin = origin
        if self.origin == origin:
            self._step = trainer.global_step

    def state(self) -> list[Any]:
        """Return where the metric comes from and after which step it was computed."""
        return [self.origin, self._step]

    def load_state(self, state: list[Any]) -> None:
        """Take back what `state` returned."""
        origin, step = state
        self.origin = origin if origin in _ORIGINS else None
        self._step = int(step)

    def is_missing(self, trainer: Trainer) -> bool:
        """Tell whether the metric is monitored, but was not logged yet."""
        if self._monitor is None or self._monitor in _ALWAYS_THERE:
            return False
        return self._monitor not in trainer.callback_metrics

    def is_current(self, trainer: Trainer) -> bool:
        """Tell whether the metric, if there is one, was computed with the present weights."""
        if self._monitor is None or (self._monitor in _ALWAYS_THERE and self._step < 0):
            return True
        return not self.is_missing(trainer) and (self.origin == "training step" or self._step == trainer.global_step)
