"""The Trainer, its states and loops."""

from __future__ import annotations

__all__ = ["TRAINER"]

TRAINER: dict[str, dict[str, str]] = {
    "lightning.pytorch.loops": {
        "fulmen.loops.evaluate": "_EvaluationLoop=EvaluationLoop",
        "fulmen.loops.fit": "_FitLoop=FitLoop",
        "fulmen.loops.predict": "_PredictionLoop=PredictionLoop",
    },
    "lightning.pytorch.loops.evaluation_loop": {"fulmen.loops.evaluate": "_EvaluationLoop=EvaluationLoop"},
    "lightning.pytorch.loops.fit_loop": {"fulmen.loops.fit": "_FitLoop=FitLoop"},
    "lightning.pytorch.loops.optimization": {
        "fulmen.loops.optimization": (
            "_AutomaticOptimization=AutomaticOptimization _ManualOptimization=ManualOptimization"
        ),
    },
    "lightning.pytorch.loops.optimization.automatic": {
        "fulmen.loops.optimization": "_AutomaticOptimization=AutomaticOptimization",
    },
    "lightning.pytorch.loops.optimization.manual": {
        "fulmen.loops.optimization": "_ManualOptimization=ManualOptimization",
    },
    "lightning.pytorch.loops.prediction_loop": {"fulmen.loops.predict": "_PredictionLoop=PredictionLoop"},
    "lightning.pytorch.loops.progress": {"fulmen.loops.progress": "_BatchProgress=Progress _ProcessedTracker=Counts"},
    "lightning.pytorch.loops.training_epoch_loop": {"fulmen.loops.fit": "_TrainingEpochLoop=FitLoop"},
    "lightning.pytorch.loops.utilities": {"fulmen.compat.finite_loss": "check_finite_loss"},
    "lightning.pytorch.trainer": {"fulmen.trainer.trainer": "Trainer", "fulmen.utilities.seed": "seed_everything"},
    "lightning.pytorch.trainer.connectors": {},
    "lightning.pytorch.trainer.connectors.accelerator_connector": {
        "fulmen.compat.argument_types": (
            "_LITERAL_WARN=LITERAL_WARN _PLUGIN_INPUT=TRAINER_PLUGIN_INPUT _PRECISION_INPUT=PRECISION_INPUT "
            "_PRECISION_INPUT_STR=PRECISION_INPUT_STR"
        ),
    },
    "lightning.pytorch.trainer.states": {"fulmen.trainer.states": "RunningStage TrainerFn TrainerState TrainerStatus"},
    "lightning.pytorch.trainer.trainer": {"fulmen.trainer.trainer": "Trainer"},
}
