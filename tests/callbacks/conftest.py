"""A model whose metrics are given, and a Trainer that prints nothing, for the tests of callbacks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen.core.module import LightningModule
from fulmen.trainer.trainer import Trainer


class ScriptedModel(LightningModule):
    """Learns a little; each validation logs the next of `val_losses`, each batch logs its index."""

    def __init__(self, val_losses: list[float] | None = None, batches: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.val_losses = val_losses or [1.0]
        self.batches = batches
        self.validations = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch[0]).square().mean()
        self.log("batch", float(batch_idx))
        self.log("epoch_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.log("val_loss", self.val_losses[min(self.validations, len(self.val_losses) - 1)])
        else:
            self.log("val_loss", 9.0)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validations += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def _loader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        return DataLoader(TensorDataset(torch.randn(self.batches, 4, generator=generator)), batch_size=1)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.ones(1, 4)), batch_size=1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model_class() -> type[ScriptedModel]:
    return ScriptedModel


@pytest.fixture
def quiet_trainer(tmp_path: Any) -> Any:
    """Return a maker of Trainers without logger, bar, summary and sanity check."""
    quiet = {
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 3,
    }

    def make(*callbacks: Any, **arguments: Any) -> Trainer:
        return partial(Trainer, **quiet)(callbacks=list(callbacks), **arguments)

    return make
