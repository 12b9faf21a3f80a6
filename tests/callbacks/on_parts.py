"""Callbacks on weights of which each rank has only parts: what each rank does, and returns for the test to look at."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulmen import LightningModule, Trainer, seed_everything
from fulmen.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientMonitor,
    GradientNoiseScale,
    GradualUnfreezing,
    KnowledgeDistillation,
    LambdaCallback,
    ModelPruning,
    NonFiniteGuard,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from fulmen.strategies.fsdp import FSDPStrategy
from fulmen.strategies.model_parallel import ModelParallelStrategy
from fulmen.tuner import Tuner
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_summary import summarize
from tests.support import quiet

__all__ = ["CASES", "SAVED_AT", "find_learning_rate", "refusals", "run_cases", "save_and_resume"]

BATCH = 8
SAVED_AT = 7  # in the middle of the second epoch


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return x + self.down(self.up(x).tanh())


class Blocks(LightningModule):
    """Two blocks and a head, with sizes that do not divide by the number of ranks."""

    def __init__(self, bad_batch: int | None = None) -> None:
        super().__init__()
        self.backbone = nn.Sequential(Block(), Block())
        self.head = nn.Linear(6, 1)
        self.bad_batch = bad_batch
        self.val_losses: list[float] = []
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Any:
        return self.head(self.backbone(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        loss = (self(x) - y).square().mean()
        if batch_idx == self.bad_batch and self.trainer.global_rank == 0:
            loss = loss * float("nan")
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", (self(batch[0]) - batch[1]).square().mean())
        self.log("val_count", float(len(batch[0])), reduce_fx="sum")

    def on_validation_epoch_end(self) -> None:
        self.val_losses.append(float(self.trainer.callback_metrics["val_loss"]))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self(batch[0]).flatten()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((each for each in self.parameters() if each.requires_grad), lr=0.02)


def data(size: int) -> TensorDataset:
    x = torch.randn(size, 6, generator=torch.Generator().manual_seed(5))
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


class Stream(IterableDataset[Any]):
    """The same samples as a stream, which says of itself that it is longer than it is, or nothing."""

    part = (0, 1)

    def __init__(self, size: int) -> None:
        self.samples = data(size)

    def set_shard(self, rank: int, num_replicas: int) -> None:
        self.part = rank, num_replicas

    def __iter__(self) -> Any:
        return (self.samples[i] for i in range(self.part[0], len(self.samples), self.part[1]))


class LyingStream(Stream):
    def __len__(self) -> int:
        return len(self.samples) // self.part[1] + 2 * BATCH


def strategy_of(name: str, **options: Any) -> Any:
    if name == "fsdp":
        return FSDPStrategy(**options)
    if name == "model_parallel":
        world = int(os.environ["WORLD_SIZE"])
        plan = {"**.up": "colwise", "**.down": "rowwise"}
        return ModelParallelStrategy(world // 2, 2, parallelize=plan, **options)
    return name


def num_shares(name: str) -> int:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return world // 2 if name == "model_parallel" else world


def fit(
    name: str,
    folder: str,
    make_callbacks: Any,
    *,
    bad_batch: int | None = None,
    ckpt_path: str | None = None,
    save_at: int = 0,
    options: dict[str, Any] | None = None,
    sizes: tuple[int, int] = (40, 20),
    streams: bool = False,
    module: Any = Blocks,
    **changes: Any,
) -> dict[str, Any]:
    """Train a module with callbacks; return whole weights and what was seen.

    Args:
        name: "fsdp", "model_parallel" or a name of a strategy.
        folder: Where files go.
        make_callbacks: A function that returns callbacks.
        bad_batch: Index of a batch whose loss is NaN on rank 0.
        ckpt_path: What to resume from.
        save_at: After which optimizer step to save, to `saved` in the folder.
        options: For the strategy.
        sizes: Numbers of samples to train on and to validate on.
        streams: Read them from streams.
        module: Class of the module.
        changes: Arguments of the Trainer.
    """
    seed_everything(3, verbose=False)
    model = module(bad_batch)
    callbacks: list[Callback] = make_callbacks()

    def note(run: Trainer, _: Any, outputs: Any, *__: Any) -> None:
        model.losses.append(float(outputs["loss"]) if outputs else float("nan"))
        if run.global_step == save_at:
            run.save_checkpoint(Path(folder, "saved"))

    arguments = quiet(
        Path(folder), devices=int(os.environ.get("WORLD_SIZE", "1")), strategy=strategy_of(name, **options or {}),
        max_epochs=2, callbacks=[*callbacks, LambdaCallback(on_train_batch_end=note)], log_every_n_steps=1,
    )  # fmt: skip
    trainer = Trainer(**{**arguments, **changes})
    size = BATCH // num_shares(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train: Any = LyingStream(sizes[0]) if streams else data(sizes[0])
        val: Any = Stream(sizes[1]) if streams else data(sizes[1])
        train_loader: Any = None if hasattr(model, "batch_size") else DataLoader(train, size)  # it has its own
        trainer.fit(model, train_loader, DataLoader(val, size), ckpt_path=ckpt_path)
    return {
        "weights": whole_weights(model),
        "losses": model.losses,
        "val_losses": model.val_losses,
        "metrics": {key: value.item() for key, value in trainer.callback_metrics.items()},
        "callbacks": [_numbers_of(each) for each in callbacks],
    }


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in model.state_dict().items()
    }


def _numbers_of(callback: Any) -> dict[str, Any]:
    names = ("last", "num_skips", "num_rollbacks", "bad_batches", "noise_scale")
    return {name: getattr(callback, name) for name in names if hasattr(callback, name)}


# ---- what is run


def _distillation() -> Callback:
    torch.manual_seed(9)
    return KnowledgeDistillation(Blocks(), distance=nn.functional.mse_loss)


class _Summary(Callback):
    """Keeps totals of a summary."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        summary = summarize(pl_module, max_depth=2)
        self.last = {"total": summary.total_parameters, "trained": summary.trainable_parameters}


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "average": (lambda: [EMAWeightAveraging(decay=0.8, update_starting_at_step=1), GradientMonitor()], {}),
    "mean": (lambda: [WeightAveraging(), GradientMonitor(by="total")], {"gradient_clip_val": 0.3}),
    "skip": (lambda: [NonFiniteGuard("skip"), SpikeDetection(rtol=1e3, finite_only=False)], {"bad_batch": 2}),
    "roll back": (lambda: [NonFiniteGuard("rollback", snapshot_every_n_steps=2)], {"bad_batch": 2}),
    "finetuning": (lambda: [BackboneFinetuning(1)], {}),
    "unfreezing": (lambda: [GradualUnfreezing(["backbone.0", "backbone.1", "head"])], {"max_epochs": 3}),
    "distillation": (lambda: [_distillation(), _Summary()], {}),
    "one batch to validate on": (list, {"sizes": (40, 3)}),
    "streams": (list, {"streams": True, "sizes": (48, 13), "accumulate_grad_batches": 4}),
}


def run_cases(name: str, folder: str, cases: list[str]) -> dict[str, Any]:
    """Return what `fit` gave in each case."""
    return {case: fit(name, folder, CASES[case][0], **CASES[case][1]) for case in cases}


def save_and_resume(name: str, folder: str, case: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train without a break and save on the way, then go on from there."""
    whole = fit(name, folder, CASES[case][0], save_at=SAVED_AT, options=options)
    resumed = fit(name, folder, CASES[case][0], ckpt_path=str(Path(folder, "saved")), options=options)
    return {"whole": whole, "resumed": resumed}


def refusals(name: str, folder: str) -> dict[str, str]:
    """Return what callbacks say that need whole weights."""
    makers: dict[str, Any] = {
        "StochasticWeightAveraging": lambda: StochasticWeightAveraging(0.1),
        "ModelPruning": lambda: ModelPruning("l1_unstructured"),
        "GradientNoiseScale": GradientNoiseScale,
        "EarlyStopping(restore_best_weights=True)": lambda: EarlyStopping("val_loss", restore_best_weights=True),
        "scale_batch_size": lambda: BatchSizeFinder(),
    }
    said = {}
    for callback, make in makers.items():
        try:
            fit(name, folder, lambda make=make: [make()], module=_WithBatchSize)
        except MisconfigurationException as error:  # noqa: PERF203 - each has to be tried
            said[callback] = str(error)
    return said


class _WithBatchSize(Blocks):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.batch_size = 4

    def train_dataloader(self) -> Any:
        return DataLoader(data(40), self.batch_size)


def find_learning_rate(name: str, folder: str) -> dict[str, Any]:
    """Search, and return the losses and whether the weights are as before."""
    seed_everything(3, verbose=False)
    model = Blocks()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = Trainer(**quiet(Path(folder), devices=devices, strategy=strategy_of(name)))
    loader: Any = DataLoader(data(40), BATCH // num_shares(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finder: Any = Tuner(trainer).lr_find(model, loader, num_training=12, update_attr=False)
    after = whole_weights(model)
    return {"losses": finder.results["loss"], "same": all(torch.equal(after[key], before[key]) for key in before)}
