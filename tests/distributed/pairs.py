"""Processes of which each two work on one batch together, and what they do on one rank of several."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulmen import Fabric, LightningModule, Trainer
from fulmen.callbacks import BasePredictionWriter, ThroughputMonitor
from fulmen.fabric.throughput import ThroughputMonitor as FabricThroughputMonitor
from fulmen.loggers import CSVLogger
from fulmen.strategies import DDPStrategy
from tests.support import quiet

__all__ = ["Pairs", "evaluate", "fabric_loop_that_is_resumed", "predict_and_write", "rates", "train_with_dropout"]


class Pairs(DDPStrategy):
    """Neighbours get the same batches, as tensor-parallel peers do; each has the whole module all the same."""

    @property
    def data_parallel_size(self) -> int:
        return self.world_size // 2

    @property
    def data_parallel_rank(self) -> int:
        return self.global_rank // 2

    @property
    def data_parallel_group(self) -> Any:
        return self._group_of_share

    def setup_environment(self) -> None:
        super().setup_environment()
        groups = [dist.new_group(list(range(peer, self.world_size, 2))) for peer in range(2)]
        self._group_of_share = groups[self.global_rank % 2]


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.total = torchmetrics.SumMetric()
        self.seen = torchmetrics.CatMetric()
        self.drawn: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.drawn += [torch.rand(()).item(), random.random()]
        return self.layer(batch[0] / 10).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.total.update(batch[0])
        self.seen.update(batch[0].flatten())
        self.log("count", float(len(batch[0])), reduce_fx="sum")
        self.log("mean", batch[0].mean())
        self.log("total", self.total)

    def on_validation_epoch_end(self) -> None:
        self.ids = torch.as_tensor(self.seen.compute()).flatten().sort().values.tolist()
        self.seen.reset()

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return batch[0].flatten()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def numbers(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(size, dtype=torch.float32).unsqueeze(1))


def trainer(folder: str, devices: int, **changes: Any) -> Trainer:
    return Trainer(**quiet(Path(folder), devices=devices, strategy=Pairs(), **changes))


def evaluate(folder: str, devices: int) -> dict[str, Any]:
    """Validate on ten batches of one; return what was logged, and what the metric object of a hook has seen."""
    model = Net()
    results = trainer(folder, devices).validate(model, DataLoader(numbers(10), 1), verbose=False)
    return {"results": results[0], "ids": model.ids, "left": model.total.dist_sync_fn}


class Writer(BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.batches: list[float] = []
        self.epoch: list[float] = []

    def write_on_batch_end(self, run: Any, module: Any, prediction: Any, indices: Any, *_: Any) -> None:
        self.batches += prediction.tolist()

    def write_on_epoch_end(self, run: Any, module: Any, predictions: Any, indices: Any) -> None:
        self.epoch += torch.cat(list(predictions)).tolist()


def predict_and_write(folder: str, devices: int) -> dict[str, Any]:
    """Predict eleven numbers; return what `predict` returned and what was written on this rank."""
    writer = Writer()
    predictions: Any = trainer(folder, devices, callbacks=[writer]).predict(Net(), DataLoader(numbers(11), 2))
    return {"predictions": torch.cat(predictions).tolist(), "batches": writer.batches, "epoch": writer.epoch}


def train_with_dropout(folder: str, devices: int) -> list[float]:
    """Train with random numbers that every process begins elsewhere; return those that it drew."""
    import os

    torch.manual_seed(int(os.environ["RANK"]))
    random.seed(int(os.environ["RANK"]))
    model = Net()
    trainer(folder, devices).fit(model, DataLoader(numbers(12), 2, shuffle=True))
    return model.drawn


class Stream(IterableDataset[Tensor]):
    """A stream that is told its part."""

    part = (0, 1)

    def set_shard(self, rank: int, num_replicas: int) -> None:
        self.part = rank, num_replicas

    def __iter__(self) -> Any:
        rank, step = self.part
        return iter(torch.arange(rank, 12, step, dtype=torch.float32).unsqueeze(1))


def fabric_loop_that_is_resumed(folder: str, devices: int) -> dict[str, list[float]]:
    """Read a third of a loader, save, read the rest, and again after loading; and read a stream."""
    fabric = Fabric(accelerator="cpu", devices=devices, strategy=Pairs())
    fabric.launch()
    fabric.seed_everything(4, verbose=False)
    loader = fabric.setup_dataloaders(DataLoader(numbers(24), 2, shuffle=True))
    seen: dict[str, list[float]] = {"before": [], "after": [], "resumed": [], "stream": []}
    for number, (batch,) in enumerate(loader):
        seen["before" if number < 2 else "after"] += batch.flatten().tolist()
        if number == 1:
            fabric.save(Path(folder, "state.ckpt"), {"loader": loader})
    again = fabric.setup_dataloaders(DataLoader(numbers(24), 2, shuffle=True))
    fabric.load(Path(folder, "state.ckpt"), {"loader": again})
    for (batch,) in again:
        seen["resumed"] += batch.flatten().tolist()
    for batch in fabric.setup_dataloaders(DataLoader(Stream(), 2)):
        seen["stream"] += batch.flatten().tolist()
    return seen


def rates(folder: str, devices: int) -> dict[str, Any]:
    """Return how the rates of all devices follow from those of one, by the Trainer's and by Fabric's monitor."""
    monitor = ThroughputMonitor(lambda batch: len(batch[0]), window_size=2)
    logger = CSVLogger(folder)
    run = trainer(folder, devices, callbacks=[monitor], logger=logger, log_every_n_steps=1)
    run.fit(Net(), DataLoader(numbers(24), 2))
    row = {name.removeprefix("train/"): value for name, value in run.logged_metrics.items()}
    stage = monitor._stages["train"].throughput
    fabric = FabricThroughputMonitor(Fabric(accelerator="cpu", devices=devices, strategy=Pairs()))
    return {
        "row": sorted(row),
        "trainer": (stage.world_size, stage.data_parallel_size),
        "fabric": (fabric.world_size, fabric.data_parallel_size),
    }
