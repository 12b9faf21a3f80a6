"""A module that logs torchmetrics collections in every way, and runs of it on one rank or several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryF1Score, BinaryPrecision, BinaryRecall

from fulmen import LightningModule, Trainer
from fulmen.callbacks import LambdaCallback
from tests.support import quiet

__all__ = ["Scores", "expected", "loader", "resumed", "scores", "train", "validate"]


def scores() -> MetricCollection:
    """Three metrics that share their states (a compute group)."""
    return MetricCollection({"p": BinaryPrecision(), "r": BinaryRecall(), "f": BinaryF1Score()})


def loader(size: int = 37, seed: int = 0, shuffle: bool = False) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    guesses = torch.rand(size, generator=generator)
    truth = (guesses + torch.randn(size, generator=generator) * 0.4 > 0.5).long()
    return DataLoader(TensorDataset(guesses, truth), 4, shuffle=shuffle)


def expected(*loaders: DataLoader[Any]) -> dict[str, float]:
    """The scores of all samples at once."""
    collection = scores()
    for each in loaders:
        collection.update(*each.dataset.tensors)  # type: ignore[attr-defined]  # a TensorDataset
    return {name: value.item() for name, value in collection.compute().items()}


class Scores(LightningModule):
    """Logs collections: `order` says whether they are updated before or after they are logged, or by `forward`."""

    def __init__(self, order: str = "update, log") -> None:
        super().__init__()
        self.order = order
        self.weight = nn.Parameter(torch.zeros(()))
        self.train_scores = scores()
        self.val_scores = nn.ModuleList([scores(), scores()])
        self.rows: list[dict[str, float]] = []

    def note(self, collection: Any, batch: list[Tensor], **options: Any) -> None:
        if self.order == "log, update":
            self.log_dict(collection, **options)
            collection.update(*batch)
        elif self.order == "update, log":
            collection.update(*batch)
            self.log_dict(collection, **options)
        elif self.order == "one by one":
            collection.update(*batch)
            for name in collection.keys(keep_base=True):
                self.log(name, collection[name], **options)
        else:
            collection(*batch)
            self.log_dict(collection, **options)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.note(self.train_scores, batch, on_step=False, on_epoch=True)
        return self.weight.square()

    def on_train_epoch_end(self) -> None:
        pass

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.note(self.val_scores[dataloader_idx], batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _Epochs(LambdaCallback):
    """Keeps what each epoch of training gave."""

    is_monitor = True  # told after all have logged

    def __init__(self) -> None:
        super().__init__()
        self.values: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.values.append({name: trainer.callback_metrics[name].item() for name in ("p", "r", "f")})


def _trainer(folder: str, **changes: Any) -> Trainer:
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    settings = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "limit_val_batches": 0}
    return Trainer(**quiet(Path(folder), **{**settings, "log_every_n_steps": 1, **changes}))


def train(folder: str, order: str, shuffle: bool = False) -> list[dict[str, float]]:
    """Return the scores of three epochs of training."""
    epochs = _Epochs()
    trainer = _trainer(folder, callbacks=[epochs], max_epochs=3)
    trainer.fit(Scores(order), loader(shuffle=shuffle), loader())
    return epochs.values


def validate(folder: str, order: str) -> list[dict[str, float]]:
    """Return the scores of two loaders of different length."""
    trainer = _trainer(folder, limit_val_batches=1.0)
    results = trainer.validate(Scores(order), [loader(37), loader(22, seed=5)], verbose=False)
    return [dict(result) for result in results]


def resumed(folder: str, order: str) -> list[dict[str, float]]:
    """Return the scores of the epochs of a run that goes on from the middle of its second one."""
    path = f"{folder}/middle.ckpt"

    def save(trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 2):
            trainer.save_checkpoint(path)

    saver = LambdaCallback(on_train_batch_end=save)
    saver.is_monitor = True  # type: ignore[attr-defined]  # acts after the module's hooks
    trainer = _trainer(folder, callbacks=[saver], max_epochs=2)
    trainer.fit(Scores(order), loader(shuffle=True), loader())
    epochs = _Epochs()
    _trainer(folder, callbacks=[epochs], max_epochs=3).fit(
        Scores(order), loader(shuffle=True), loader(), ckpt_path=path
    )
    return epochs.values
