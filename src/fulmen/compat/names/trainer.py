"""The Trainer, its states and loops."""

from __future__ import annotations

__all__ = ["TRAINER"]

TRAINER: dict[str, dict[str, str]] = {
    "lightning.pytorch.trainer": {"fulmen.trainer.trainer": "Trainer", "fulmen.utilities.seed": "seed_everything"},
    "lightning.pytorch.trainer.states": {"fulmen.trainer.states": "RunningStage TrainerFn TrainerState TrainerStatus"},
    "lightning.pytorch.trainer.trainer": {"fulmen.trainer.trainer": "Trainer"},
}
