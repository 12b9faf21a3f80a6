"""A small training, whose checkpoints the tests of commands look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from tests.support import quiet


class Net(LightningModule):
    def __init__(self, width: int = 8, lr: float = 0.1, act: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))  # type: ignore[no-any-return]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self(batch).square().mean()
        self.log("loss", loss)
        return loss  # type: ignore[no-any-return]

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def data() -> DataLoader[Any]:
    return DataLoader(torch.arange(24.0).reshape(12, 2), batch_size=4)  # type: ignore[arg-type]  # a tensor is a dataset


def train(folder: Path) -> Path:
    """Train for two epochs; return the path of the last checkpoint, beside which is one with `weights.ckpt`."""
    torch.manual_seed(1)
    callbacks = [EarlyStopping("loss"), ModelCheckpoint(folder, save_last=True)]
    trainer = Trainer(**quiet(folder, callbacks=callbacks, max_epochs=2, enable_checkpointing=True))
    trainer.fit(Net(), data())
    trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    return folder / "last.ckpt"
