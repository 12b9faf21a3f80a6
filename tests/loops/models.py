"""Small models for tests of optimization, trained in one line by `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.plugins.precision import MixedPrecision
from tests.support import quiet


def data(batches: int = 4) -> DataLoader[Any]:
    """Batch i is the number i + 1, twice."""
    return DataLoader(torch.arange(1.0, 1 + batches).repeat_interleave(2).view(-1, 1), batch_size=2)  # type: ignore[arg-type]


def fit(model: LightningModule, tmp_path: Path, batches: int = 4, **settings: Any) -> Trainer:
    trainer = Trainer(**quiet(tmp_path, **settings))
    trainer.fit(model, data(batches))
    return trainer


class Automatic(LightningModule):
    """One weight, whose gradient on batch i is i + 1; notes what happens in `seen`."""

    def __init__(self, none_on: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.none_on = none_on
        self.seen: list[Any] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return None if batch_idx in self.none_on else (self.weight * batch.mean()).sum()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    @property
    def gradient(self) -> float | None:
        return None if self.weight.grad is None else self.weight.grad.item()


class ThroughClosure(Automatic):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


BOTH_PATHS = pytest.mark.parametrize("kind", [Automatic, ThroughClosure])


def plain(value: Any) -> Any:
    return (value.item(), value.requires_grad) if isinstance(value, Tensor) else value


def scaled(**settings: Any) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0, **settings))
