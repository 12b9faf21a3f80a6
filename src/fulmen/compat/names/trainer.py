"""The Trainer, its states and loops."""

from __future__ import annotations

__all__ = ["TRAINER"]

# Modules without names are there for `import`: what Lightning has in them begins with `_`, and no package was seen to
# need it. What some need is in `fulmen.compat.semi_private`.

TRAINER: dict[str, dict[str, str]] = {
    "lightning.pytorch.cli": {
        "fulmen.cli.argument_parser": "LightningArgumentParser",
        "fulmen.cli.instantiation": "instantiate_class instantiate_module",
        "fulmen.cli.lightning_cli": "LightningCLI",
        "fulmen.cli.optimizers": (
            "ArgsType LRSchedulerCallable LRSchedulerType LRSchedulerTypeTuple LRSchedulerTypeUnion OptimizerCallable "
            "ReduceLROnPlateau"
        ),
        "fulmen.cli.save_config": "SaveConfigCallback",
        "jsonargparse": "ActionConfigFile ArgumentParser Namespace class_from_function",  # salt-ml has one from there
    },
    "lightning.pytorch.loops": {
        "fulmen.compat.evaluation_loop": "_EvaluationLoop=EvaluationLoop",
        "fulmen.loops.fit": "_FitLoop=FitLoop",
        "fulmen.loops.predict": "_PredictionLoop=PredictionLoop",
    },
    "lightning.pytorch.loops.evaluation_loop": {"fulmen.compat.evaluation_loop": "_EvaluationLoop=EvaluationLoop"},
    "lightning.pytorch.loops.fetchers": {},
    "lightning.pytorch.loops.fit_loop": {"fulmen.loops.fit": "_FitLoop=FitLoop"},
    "lightning.pytorch.loops.loop": {},
    "lightning.pytorch.loops.optimization": {
        "fulmen.loops.optimization": (
            "_AutomaticOptimization=AutomaticOptimization _ManualOptimization=ManualOptimization"
        ),
    },
    "lightning.pytorch.loops.optimization.automatic": {
        "fulmen.compat.closures": "Closure ClosureResult",
        "fulmen.loops.optimization": "_AutomaticOptimization=AutomaticOptimization",
    },
    "lightning.pytorch.loops.optimization.closure": {"fulmen.compat.closures": "AbstractClosure OutputResult"},
    "lightning.pytorch.loops.optimization.manual": {
        "fulmen.compat.closures": "ManualResult",
        "fulmen.loops.optimization": "_ManualOptimization=ManualOptimization",
    },
    "lightning.pytorch.loops.prediction_loop": {"fulmen.loops.predict": "_PredictionLoop=PredictionLoop"},
    "lightning.pytorch.loops.progress": {"fulmen.loops.progress": "_BatchProgress=Progress _ProcessedTracker=Counts"},
    "lightning.pytorch.loops.training_epoch_loop": {"fulmen.loops.fit": "_TrainingEpochLoop=FitLoop"},
    "lightning.pytorch.loops.utilities": {"fulmen.compat.finite_loss": "check_finite_loss"},
    "lightning.pytorch.serve": {
        "fulmen.serve.servable_module": "ServableModule",
        "fulmen.serve.validator": "ServableModuleValidator",
    },
    "lightning.pytorch.trainer": {"fulmen.trainer.trainer": "Trainer", "fulmen.utilities.seed": "seed_everything"},
    "lightning.pytorch.trainer.call": {},
    "lightning.pytorch.trainer.configuration_validator": {},
    "lightning.pytorch.trainer.connectors": {},
    "lightning.pytorch.trainer.connectors.accelerator_connector": {
        "fulmen.compat.argument_types": (
            "_LITERAL_WARN=LITERAL_WARN _PLUGIN_INPUT=TRAINER_PLUGIN_INPUT _PRECISION_INPUT=PRECISION_INPUT "
            "_PRECISION_INPUT_STR=PRECISION_INPUT_STR"
        ),
        "fulmen.compat.semi_private": "_AcceleratorConnector=AcceleratorConnector",
    },
    "lightning.pytorch.trainer.connectors.callback_connector": {},
    "lightning.pytorch.trainer.connectors.checkpoint_connector": {},
    "lightning.pytorch.trainer.connectors.data_connector": {},
    "lightning.pytorch.trainer.connectors.logger_connector": {},
    "lightning.pytorch.trainer.connectors.logger_connector.fx_validator": {},
    "lightning.pytorch.trainer.connectors.logger_connector.logger_connector": {},
    "lightning.pytorch.trainer.connectors.logger_connector.result": {
        "fulmen.compat.argument_types": "_OUT_DICT=OUT_DICT",
    },
    "lightning.pytorch.trainer.connectors.signal_connector": {},
    "lightning.pytorch.trainer.setup": {},
    "lightning.pytorch.trainer.states": {"fulmen.trainer.states": "RunningStage TrainerFn TrainerState TrainerStatus"},
    "lightning.pytorch.trainer.trainer": {"fulmen.trainer.trainer": "Trainer"},
}
