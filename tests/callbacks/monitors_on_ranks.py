"""Runs of monitoring callbacks on one rank of several."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import GradientMonitor, GradientNoiseScale, SpikeDetection, ThroughputMonitor
from fulmen.fabric.spike import TrainingSpikeException
from fulmen.loggers import CSVLogger
from tests.support import quiet

__all__ = ["monitor", "noise_of_ranks", "spike_on_one_rank"]


class Net(LightningModule):
    def __init__(self, jumps_on_rank: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)
        self.jumps_on_rank = jumps_on_rank

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = (self.layer(batch[0]) - batch[1]).square().mean()
        return loss * 50 if self.global_rank == self.jumps_on_rank and batch_idx == 5 else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(folder: str, *callbacks: Any, jumps_on_rank: int | None = None, **arguments: Any) -> Trainer:
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(64, 8, generator=generator), torch.randn(64, 4, generator=generator))
    settings = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "log_every_n_steps": 1}
    trainer = Trainer(**quiet(Path(folder), callbacks=list(callbacks), **{**settings, **arguments}))
    trainer.fit(Net(jumps_on_rank), DataLoader(data, 4 if devices > 1 else arguments.pop("size", 4)))
    return trainer


def noise_of_ranks(folder: str, accumulate: int) -> dict[str, Any]:
    """Measure the noise of micro-batches of 4 samples, and the norms of the gradients of whole steps."""
    noise, norms = GradientNoiseScale(1), GradientMonitor(1)
    trainer = _fit(folder, noise, norms, accumulate_grad_batches=accumulate)
    return {"noise": noise.state_dict(), "norms": norms.last, "step": trainer.global_step}


def spike_on_one_rank(folder: str) -> dict[str, Any]:
    """Let the loss of rank 1 jump."""
    try:
        _fit(folder, SpikeDetection(exclude_batches_path=folder), jumps_on_rank=1)
    except TrainingSpikeException as error:
        return {"batch": error.batch_idx, "file": json.loads((Path(folder) / "skip_batches.json").read_text())}
    return {}


def monitor(folder: str) -> list[str]:
    """Return the names of the rates that are logged."""
    callback = ThroughputMonitor(lambda batch: len(batch[0]), window_size=2)
    return sorted(_fit(folder, callback, logger=CSVLogger(folder)).history.names)
