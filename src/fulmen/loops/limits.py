"""When training ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.warnings import PossibleUserWarning

if TYPE_CHECKING:
    from fulmen.loops.progress import FitProgress

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a fit. `None` means no bound of that kind.

    The minima hold back a stop that was asked for through `trainer.should_stop`, not the maxima.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    min_epochs: int = 0
    min_steps: int = 0
    endless: bool = False

    def with_max_epochs(self, max_epochs: int | None) -> Limits:
        """Return the same limits with another bound on epochs; -1 is endless."""
        endless = max_epochs == -1
        return replace(self, max_epochs=None if endless else max_epochs, endless=endless)

    def settled(self, *, has_timer: bool) -> Limits:
        """Return the limits with a bound on epochs, or without an end if something else ends training.

        Args:
            has_timer: There is a bound on the time.
        """
        if self.max_epochs is not None or self.endless:
            return self
        if self.max_steps is not None or has_timer:
            return self.with_max_epochs(-1)
        rank_zero_warn(
            "`max_epochs` was not set, so training ends after 1000 epochs."
            " Set `Trainer(max_epochs=-1)` to train without an end.",
            category=PossibleUserWarning,
        )
        return self.with_max_epochs(1000)

    def batches_to_come(self, done: FitProgress, num_batches: int | float, *, window: int) -> float:
        """Return how many training batches there will be at most.

        Args:
            done: What was done already.
            num_batches: Batches of an epoch.
            window: Batches of an optimizer step.
        """
        epochs = math.inf if self.max_epochs is None else self.max_epochs - done.epochs.current.completed
        steps = math.inf if self.max_steps is None else self.max_steps - done.global_step
        return min(epochs * num_batches if epochs else 0, steps * window)

    def reached(self, done: FitProgress) -> str | None:
        """Why training is over at the end of an epoch, as a phrase for the log; `None` while it goes on."""
        if (reason := self.steps_reached(done)) is not None:
            return reason
        if self.max_epochs is not None and done.epochs.current.completed >= self.max_epochs:
            return f"`max_epochs={self.max_epochs}` reached"
        return None

    def steps_reached(self, done: FitProgress) -> str | None:
        """Why training is over after a batch."""
        if self.max_steps is not None and done.global_step >= self.max_steps:
            return f"`max_steps={self.max_steps}` reached"
        return None

    def minima_met(self, done: FitProgress) -> bool:
        """Tell whether a stop that was asked for may take effect."""
        return done.epochs.current.completed >= self.min_epochs and done.global_step >= self.min_steps
