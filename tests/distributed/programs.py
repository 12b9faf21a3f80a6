"""Programs that one process and several must do alike: module-level functions, as they run in spawned ranks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer, seed_everything
from tests.support import quiet

__all__ = ["SIZES", "Regression", "fabric_results", "trainer_results"]

SIZES = {"train": 101, "val": 37, "predict": 29}  # none divides by a batch size or a world size


class Regression(LightningModule):
    """A small network that logs all that can be logged."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = optimizer
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        errors = (self.net(x) - y).square()
        loss = errors.mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("train_count", float(len(x)), on_epoch=True, on_step=False, reduce_fx="sum")
        self.log("train_worst", errors.max(), on_epoch=True, on_step=False, reduce_fx="max")
        return loss  # type: ignore[no-any-return]  # a module returns Any

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        errors = (self.net(x) - y).square()
        self.log("val_loss", errors.mean())
        self.log("val_count", float(len(x)), reduce_fx="sum")
        self.log("val_best", errors.min(), reduce_fx="min")
        if self.trainer.is_global_zero:
            self.log("only_zero", errors.mean() * 0 + 7)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0])  # type: ignore[no-any-return]  # a module returns Any

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=0.01)
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loaders(batch_size: int, *, shuffle: bool, workers: int = 0, drop_last: bool = False) -> dict[str, Any]:
    """Return loaders over the same data in every process."""
    generator = torch.Generator().manual_seed(7)

    def data(size: int) -> TensorDataset:
        x = torch.randn(size, 6, generator=generator)
        return TensorDataset(x, x.sum(1, keepdim=True).sin())

    sets = {name: data(size) for name, size in SIZES.items()}
    train = DataLoader(
        sets["train"], batch_size, shuffle=shuffle, num_workers=workers, drop_last=drop_last,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    return {"train": train, **{name: DataLoader(sets[name], batch_size) for name in ("val", "predict")}}


def trainer_results(devices: int, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train, validate and predict; return everything that must not depend on the number of processes.

    Args:
        devices: Number of processes.
        batch_size: Samples in each process' batch.
        options: `optimizer`, `shuffle`, `workers`, `drop_last`; all others are arguments of the Trainer.
    """
    seed_everything(1, verbose=False)
    options = dict(options)
    model = Regression(options.pop("optimizer", "sgd"))
    data = loaders(
        batch_size, shuffle=options.pop("shuffle", False), workers=options.pop("workers", 0),
        drop_last=options.pop("drop_last", False),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = quiet(
            Path(folder), devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=3, log_every_n_steps=1
        )
        trainer = Trainer(**{**arguments, **options})
        trainer.fit(model, data["train"], data["val"])
        fitted = {name: value.item() for name, value in trainer.callback_metrics.items()}
        validated = trainer.validate(model, data["val"], verbose=False)
        predicted: Any = trainer.predict(model, data["predict"])
    return {
        "weights": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "fit_metrics": fitted,
        "validated": validated,
        "predicted": torch.cat(predicted),
        "steps": trainer.global_step,
    }


def fabric_results(devices: int, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """The same by a loop on Fabric; returns weights and the loss of each global batch.

    Args:
        devices: Number of processes.
        batch_size: Samples in each process' batch.
        options: `accumulate`, `clip`, `shuffle`.
    """
    from fulmen import Fabric

    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    return fabric_loop(fabric, batch_size, options)


def fabric_loop(fabric: Any, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train with a Fabric that is launched."""
    fabric.seed_everything(1, verbose=False)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9))
    data = loaders(batch_size, shuffle=options.get("shuffle", False), drop_last=True)
    loader = fabric.setup_dataloaders(data["train"])
    window, losses = options.get("accumulate", 1), []
    for _ in range(3):
        for number, (x, y) in enumerate(loader):
            is_due = (number + 1) % window == 0
            with fabric.no_backward_sync(model, enabled=not is_due):
                loss = (model(x) - y).square().mean()
                fabric.backward(loss / window)
            losses.append(float(fabric.all_reduce(loss.detach().clone())))
            if is_due:
                if "clip" in options:
                    fabric.clip_gradients(model, optimizer, max_norm=options["clip"])
                optimizer.step()
                optimizer.zero_grad()
    return {"weights": {name: value.detach().clone() for name, value in module.state_dict().items()}, "losses": losses}
