"""Bad numbers and full memory on one rank of two: functions that each rank runs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer, seed_everything
from fulmen.callbacks import NonFiniteError, NonFiniteGuard
from tests.support import quiet


class Net(LightningModule):
    """On one rank its loss becomes NaN on some batches, or memory runs out above some samples."""

    mean: Tensor

    def __init__(
        self, bad_on: int = -1, batches: tuple[int, ...] = (), fits: int = 10**6, gathers: bool = False
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
        self.register_buffer("mean", torch.zeros(3))
        self.bad_on, self.batches, self.fits, self.gathers = bad_on, batches, fits, gathers
        self.sizes: list[int] = []
        self.weights: list[list[float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        self.sizes.append(len(x))
        loss = (self.net(x) - y).square().mean()
        self.mean.mul_(0.5).add_(x.mean(0) * 0.5)  # depends on the rank
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        if self.gathers:
            self.all_gather(loss.detach())
        is_here = self.global_rank == self.bad_on
        if is_here and len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss * float("nan") if is_here and batch_idx in self.batches else loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.weights.append(self.vector())

    def vector(self) -> list[float]:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()]).tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def data(samples: int = 46, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(samples, 3, generator=generator), torch.randn(samples, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def trainer(folder: str, **changes: Any) -> Trainer:
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    strategy = "ddp" if devices > 1 else "auto"
    return Trainer(**quiet(Path(folder), **{"devices": devices, "strategy": strategy, **changes}))


def fit(folder: str, model: Net, loader: Any = None, **settings: Any) -> dict[str, Any]:
    seed_everything(1, verbose=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    running = trainer(folder, **settings)
    error = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            running.fit(model, data() if loader is None else loader)
        except (NonFiniteError, RuntimeError) as raised:
            error = f"{type(raised).__name__}: {raised}"
    texts = [str(each.message) for each in caught]
    return {
        "weights": model.weights,
        "vector": model.vector(),
        "buffers": [buffer.tolist() for buffer in model.buffers()],
        "sizes": model.sizes,
        "metrics": {name: value.item() for name, value in running.callback_metrics.items()},
        "steps": running.global_step,
        "error": error,
        "warnings": [text for text in texts if "NonFinite" in text or "memory" in text],
    }


def guarded(folder: str, action: str) -> dict[str, Any]:
    """Train under a guard, while rank 1 gets a NaN."""
    guard = NonFiniteGuard(action, snapshot_every_n_steps=2)  # type: ignore[arg-type]  # one of them
    return {**fit(folder, Net(1, (3,)), callbacks=guard), "skips": guard.num_skips, "rollbacks": guard.num_rollbacks}


def unguarded(folder: str) -> dict[str, Any]:
    """Train on, while rank 1 gets a NaN, and its rank reports it."""
    return fit(folder, Net(1, (3,)))


def divided(folder: str, fits: int = 10**6, auto: bool = True, accumulate: int = 1) -> dict[str, Any]:
    """Train, while memory runs out on rank 1."""
    from fulmen.callbacks import GradientAccumulationScheduler

    settings: dict[str, Any] = {"accumulate_grad_batches": "auto" if auto else accumulate}
    if auto and accumulate > 1:
        settings["callbacks"] = GradientAccumulationScheduler({0: accumulate})
    return fit(folder, Net(1, fits=fits), **settings)


def gathering(folder: str) -> dict[str, Any]:
    """Communicate in a step that must not."""
    return fit(folder, Net(gathers=True), accumulate_grad_batches="auto")
