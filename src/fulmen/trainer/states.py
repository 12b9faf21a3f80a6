"""The states of a Trainer, which callbacks use too, under the name that programs know."""

from __future__ import annotations

from fulmen.core.states import RunningStage as RunningStage
from fulmen.core.states import TrainerFn as TrainerFn
from fulmen.core.states import TrainerState as TrainerState
from fulmen.core.states import TrainerStatus as TrainerStatus

__all__ = ["RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"]
