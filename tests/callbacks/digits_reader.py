"""A small network that reads the digits of scikit-learn, and runs of it that print nothing."""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.utilities.exceptions import SIGTERMException
from tests.support import quiet

__all__ = ["Reader", "digits", "loader", "rows_of", "stopped_by_signal", "train"]


@functools.cache
def digits() -> TensorDataset:
    """All pictures as rows of 64 numbers from 0 to 1, in an order of no meaning, and their labels."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(42))
    return TensorDataset(torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order])


def loader(start: int = 0, end: int = 640, batch_size: int = 32, shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*digits()[start:end]), batch_size, shuffle=shuffle)


class Reader(LightningModule):
    def __init__(self, width: int = 16, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.net(pictures)
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        scores: Tensor = self(batch[0])
        return scores

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def train(
    tmp_path: Path, *callbacks: Callback, model: Any = Reader, data: Any = None, val: Any = None,
    ckpt_path: Any = None, enable_checkpointing: bool = False, **arguments: Any,
) -> Trainer:  # fmt: skip
    """Fit on 640 digits, one epoch if not said otherwise.

    `model` is a module, or what makes one with the same random numbers each time.
    """
    torch.manual_seed(1)
    own = list(callbacks)
    if enable_checkpointing or ckpt_path is not None:
        own.append(ModelCheckpoint(tmp_path / "checkpoints"))
    settings = {"num_sanity_val_steps": 0, "log_every_n_steps": 5, "limit_val_batches": 0 if val is None else 1.0}
    trainer = Trainer(
        **quiet(
            tmp_path, **{**settings, "callbacks": own, "enable_checkpointing": len(own) > len(callbacks), **arguments}
        )
    )
    made = model if isinstance(model, LightningModule) else model()
    trainer.fit(made, data or loader(), val or loader(640, 960, shuffle=False), ckpt_path=ckpt_path)
    return trainer


class _Signal(Callback):
    def __init__(self, batch_idx: int, epoch: int) -> None:
        self.batch_idx, self.epoch = batch_idx, epoch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch_idx):
            signal.raise_signal(signal.SIGTERM)


def stopped_by_signal(tmp_path: Path, *callbacks: Callback, batch_idx: int, epoch: int = 0, **arguments: Any) -> str:
    """Train as `train`, but let a SIGTERM end it in the middle of an epoch; return the checkpoint it left."""
    with pytest.raises(SIGTERMException):
        train(tmp_path, _Signal(batch_idx, epoch), *callbacks, enable_checkpointing=True, **arguments)
    [path] = tmp_path.rglob("interrupted.ckpt")
    return str(path)


def rows_of(trainer: Trainer, name: str) -> list[tuple[int, float]]:
    """What was logged under a name: steps and values."""
    return list(trainer.history[name])
