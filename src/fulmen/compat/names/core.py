"""The first names, modules, datamodules and demos."""

from __future__ import annotations

__all__ = ["CORE"]

CORE: dict[str, dict[str, str]] = {
    "lightning": {
        "fulmen.core.callback": "Callback",
        "fulmen.core.datamodule": "LightningDataModule",
        "fulmen.core.module": "LightningModule",
        "fulmen.fabric.fabric": "Fabric",
        "fulmen.trainer.trainer": "Trainer",
        "fulmen.utilities.seed": "seed_everything",
    },
    "lightning.pytorch": {
        "fulmen.compat.logo": "LIGHTNING_LOGO cli_lightning_logo",
        "fulmen.core.callback": "Callback",
        "fulmen.core.datamodule": "LightningDataModule",
        "fulmen.core.module": "LightningModule",
        "fulmen.trainer.trainer": "Trainer",
        "fulmen.utilities.seed": "seed_everything",
        "fulmen.utilities.warnings": "disable_possible_user_warnings",
    },
    "lightning.pytorch.core": {
        "fulmen.core.datamodule": "LightningDataModule",
        "fulmen.core.module": "LightningModule",
    },
    "lightning.pytorch.core.datamodule": {"fulmen.core.datamodule": "LightningDataModule"},
    "lightning.pytorch.core.hooks": {"fulmen.core.hooks": "CheckpointHooks DataHooks ModelHooks"},
    "lightning.pytorch.core.mixins": {"fulmen.core.hparams": "HyperparametersMixin"},
    "lightning.pytorch.core.mixins.hparams_mixin": {"fulmen.core.hparams": "HyperparametersMixin"},
    "lightning.pytorch.core.module": {"fulmen.core.module": "LightningModule MODULE_OPTIMIZERS"},
    "lightning.pytorch.core.optimizer": {"fulmen.core.optimizer": "LightningOptimizer do_nothing_closure"},
    "lightning.pytorch.core.saving": {
        "fulmen.core.saving": (
            "CHECKPOINT_PAST_HPARAMS_KEYS convert load_hparams_from_tags_csv load_hparams_from_yaml "
            "save_hparams_to_tags_csv save_hparams_to_yaml update_hparams"
        ),
        "fulmen.utilities.files": "get_filesystem",  # pytorch-tabular has it from here
    },
    "lightning.pytorch.demos": {
        "fulmen.demos.boring_classes": "BoringDataModule BoringModel DemoModel",
        "fulmen.demos.lstm": "LightningLSTM SequenceSampler SimpleLSTM",
        "fulmen.demos.transformer": "LightningTransformer Transformer",
        "fulmen.demos.wikitext": "WikiText2",
    },
    "lightning.pytorch.demos.boring_classes": {
        "fulmen.demos.boring_classes": (
            "BoringDataModule BoringDataModuleNoLen BoringModel DemoModel IterableBoringDataModule "
            "ManualOptimBoringModel Net RandomDataset RandomDictDataset RandomIterableDataset "
            "RandomIterableDatasetWithLen"
        ),
    },
    "lightning.pytorch.demos.lstm": {"fulmen.demos.lstm": "LightningLSTM SequenceSampler SimpleLSTM"},
    "lightning.pytorch.demos.mnist_datamodule": {"fulmen.demos.mnist_datamodule": "MNIST MNISTDataModule"},
    "lightning.pytorch.demos.transformer": {
        "fulmen.demos.transformer": "LightningTransformer PositionalEncoding Transformer",
        "fulmen.demos.wikitext": "Dictionary WikiText2 tokenize",
    },
}
