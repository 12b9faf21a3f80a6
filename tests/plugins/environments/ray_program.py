"""Trains in two workers of Ray Train: `ray_program.py ours|theirs FOLDER`; FOLDER/result.json tells of it.

"theirs" is a program of Ray's documentation for Lightning, run through the compat layer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(
    RAY_TRAIN_V2_ENABLED="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="300",  # of busy machines
)

SETTINGS: dict[str, Any] = {
    "accelerator": "cpu", "max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1, "logger": False,
    "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def train_with_ours(config: dict[str, Any]) -> None:
    from fulmen import Trainer, seed_everything
    from fulmen.demos import BoringModel

    seed_everything(1, verbose=False)
    model, trainer = BoringModel(), Trainer(**SETTINGS)
    trainer.fit(model)
    result = {
        "world_size": trainer.world_size,
        "environment": type(trainer.strategy.cluster_environment).__name__,
        "strategy": type(trainer.strategy).__name__,
        "weights": model.layer.weight.flatten().tolist(),
    }
    if trainer.is_global_zero:
        Path(config["folder"], "result.json").write_text(json.dumps(result))


def train_with_theirs(config: dict[str, Any]) -> None:
    import fulmen.compat

    fulmen.compat.install()
    import lightning.pytorch as pl  # type: ignore[import-not-found]  # fulmen answers
    from lightning.pytorch.demos.boring_classes import BoringModel  # type: ignore[import-not-found]
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer

    class Model(BoringModel):
        def on_train_epoch_end(self) -> None:
            self.log("world_size", float(self.trainer.world_size))
            self.log("is_fulmen", float(pl.Trainer.__module__.startswith("fulmen")))
            self.log("sum", self.layer.weight.sum())

    pl.seed_everything(1)
    trainer = pl.Trainer(
        **SETTINGS, devices="auto", strategy=RayDDPStrategy(), plugins=[RayLightningEnvironment()],
        callbacks=[RayTrainReportCallback()],
    )  # fmt: skip
    prepare_trainer(trainer).fit(Model())


def main(what: str, folder: str) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="warning")
    result = TorchTrainer(
        {"ours": train_with_ours, "theirs": train_with_theirs}[what],
        train_loop_config={"folder": folder},
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(storage_path=folder),
    ).fit()
    if result.checkpoint is not None:
        told = {**result.metrics, "files": os.listdir(result.checkpoint.path)}
        Path(folder, "result.json").write_text(json.dumps(told))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
