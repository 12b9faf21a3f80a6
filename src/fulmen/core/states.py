"""What a Trainer is doing."""

from __future__ import annotations

from dataclasses import dataclass

from fulmen.utilities.enums import LightningEnum

__all__ = ["RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"]


class TrainerStatus(LightningEnum):
    """How a run stands."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """Whether nothing is running."""
        return self in (self.FINISHED, self.INTERRUPTED)


class TrainerFn(LightningEnum):
    """Which of the Trainer's methods was called."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class RunningStage(LightningEnum):
    """What is running now; a fit also validates."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        """Whether a validation, test or sanity check runs."""
        return self in (self.VALIDATING, self.TESTING, self.SANITY_CHECKING)

    @property
    def dataloader_prefix(self) -> str | None:
        """The word before `_dataloader` in the hook that gives this stage's data."""
        if self in (self.VALIDATING, self.SANITY_CHECKING):
            return "val"
        return str(self.value)


@dataclass
class TrainerState:
    """The state of a Trainer: how it stands, what was called, what runs now."""

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None
    is_set_up: bool | None = None
    """Whether `setup` hooks wait for their `teardown`: None before the first `setup`, False once all was taken down."""

    @property
    def finished(self) -> bool:
        """Whether the last run ended normally."""
        return self.status == TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        """Whether nothing is running."""
        return self.status.stopped
