"""A few hundred handwritten digits and small models of them, for callbacks that change weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer
from tests.support import quiet

BATCHES = 4


@cache
def digits() -> TensorDataset:
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(42))
    pictures = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16
    return TensorDataset(pictures[order], torch.tensor(data.target)[order])


def train_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*digits()[:256]), batch_size=64, shuffle=True)


def val_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*digits()[256:512]), batch_size=64)


class Reader(LightningModule):
    """Two layers, batch norm and dropout; notes its losses, and the weights that each validation batch sees."""

    def __init__(self, scheduler: Any = None, width: int = 16, lr: float = 0.01) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(width, 10)
        self.scheduler = scheduler
        self.lr = lr
        self.losses: list[float] = []
        self.evaluated: list[Tensor] = []

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.head(self.backbone(pictures))
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.evaluated.append(self.head.weight.detach().clone())
        scores = self(batch[0])
        accuracy = (scores.argmax(1) == batch[1]).float().mean()
        self.log_dict({"val_loss": F.cross_entropy(scores, batch[1]), "val_acc": accuracy})

    def trained(self) -> Iterable[nn.Parameter]:
        return [each for each in self.parameters() if each.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.trained(), lr=self.lr)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}


class SaveAt(Callback):
    """Saves in one hook at one global step; raises there instead if it is told to."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.step, self.path = step, path
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking and not self.path.exists():
            trainer.save_checkpoint(self.path)


def fit(
    model: LightningModule, tmp_path: Path, *callbacks: Callback, ckpt_path: Path | None = None, **settings: Any
) -> Trainer:
    torch.manual_seed(11)
    trainer = Trainer(**quiet(tmp_path, callbacks=list(callbacks), **{"max_epochs": 3, **settings}))
    trainer.fit(model, train_loader(), val_loader(), ckpt_path=ckpt_path)
    return trainer


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of tensors that are not the same to the bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def seeded(make: Any, *args: Any, seed: int = 3, **kwargs: Any) -> Any:
    torch.manual_seed(seed)
    return make(*args, **kwargs)
