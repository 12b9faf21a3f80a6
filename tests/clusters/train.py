"""Trains a small network under the Trainer or Fabric; the tests of clusters start it in the ways a user would."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer, seed_everything
from fulmen.callbacks import Callback
from fulmen.fabric import Fabric
from fulmen.loggers import CSVLogger
from fulmen.plugins.environments import SLURMEnvironment

NUM_SAMPLES = 256


class Regression(LightningModule):
    """Learns a sine; with dropout, each rank with random numbers of its own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def on_fit_start(self) -> None:
        torch.manual_seed(self.global_rank)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Pace(Callback):
    """Makes each step last some time, so that signals find it at work; in a requeued job only if told so."""

    def __init__(self, seconds: float, *, is_always: bool) -> None:
        self.seconds = seconds if is_always or not os.environ.get("SLURM_RESTART_COUNT") else 0.0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        say(f"step {trainer.global_step} on rank {trainer.global_rank}")
        time.sleep(self.seconds)


class Fails(Callback):
    """Ends one rank with an error, or as if the system had killed it."""

    def __init__(self, how: str, rank: int) -> None:
        self.how, self.rank = how, rank

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 3:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"no more of this on rank {self.rank}")


def say(text: str) -> None:
    """Write a line at once, and as a whole: several processes share the output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def data(batch_size: int, workers: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return a sine in noise, `batch_size` samples at a time."""
    noise = torch.Generator().manual_seed(1)
    x = torch.linspace(-3, 3, NUM_SAMPLES).unsqueeze(1)
    y = torch.sin(x) + 0.1 * torch.randn(x.shape, generator=noise)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True, num_workers=workers)


def train_by_trainer(options: argparse.Namespace) -> None:
    """Fit; rank 0 leaves the weights in `weights.pt`."""
    callbacks: list[Callback] = [Pace(options.pace, is_always=options.pace_always)]
    if options.fail:
        callbacks.append(Fails(options.fail[0], int(options.fail[1])))
    trainer = Trainer(
        **_where(options),
        callbacks=callbacks,
        plugins=None if options.auto_requeue else SLURMEnvironment(auto_requeue=False),
        default_root_dir=options.root,
        max_epochs=options.epochs,
        logger=CSVLogger(options.root, name=None, version="log"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    _introduce(trainer)
    model = Regression(options.dropout)
    trainer.fit(model, data(options.batch_size, options.workers))
    if trainer.is_global_zero:
        torch.save(model.state_dict(), options.root / "weights.pt")


def train_by_fabric(options: argparse.Namespace) -> None:
    """The same loop by hand."""
    fabric = Fabric(**_where(options))
    fabric.launch()
    _introduce(fabric)
    original = Regression()
    model, optimizer = fabric.setup(original.net, original.configure_optimizers())
    loader = fabric.setup_dataloaders(data(options.batch_size, options.workers))
    for _ in range(options.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            fabric.backward(mse_loss(model(x), y))
            optimizer.step()
    if fabric.is_global_zero:
        torch.save(original.state_dict(), options.root / "weights.pt")


def _where(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "accelerator": "cpu",
        "strategy": "ddp" if options.devices * options.num_nodes > 1 else "auto",
        "devices": options.devices,
        "num_nodes": options.num_nodes,
    }


def _introduce(one: Trainer | Fabric) -> None:
    say(f"rank {one.global_rank} of {one.world_size}, {one.local_rank} on {one.node_rank}")


def _own_handler(signum: int, frame: FrameType | None) -> None:
    say(f"my own handler got {signal.Signals(signum).name}")


def main(arguments: list[str] | None = None) -> None:
    """Read the options, train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path, help="folder of everything that is written")
    parser.add_argument("--fabric", action="store_true")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--num-nodes", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds that each step lasts at least")
    parser.add_argument("--pace-always", action="store_true", help="in a requeued job, too")
    parser.add_argument("--fail", nargs=2, metavar=("raise|kill", "RANK"), help="end this rank after three steps")
    parser.add_argument("--no-requeue", dest="auto_requeue", action="store_false")
    parser.add_argument("--own-handler", action="store_true", help="handle SIGUSR1 in this script")
    options = parser.parse_args(arguments)
    options.root.mkdir(parents=True, exist_ok=True)
    if options.own_handler:
        signal.signal(signal.SIGUSR1, _own_handler)
    torch.set_num_threads(1)
    seed_everything(7)
    (train_by_fabric if options.fabric else train_by_trainer)(options)


if __name__ == "__main__":
    main(sys.argv[1:])
