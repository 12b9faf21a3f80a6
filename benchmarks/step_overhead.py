"""What a training step costs beside the plain loop: ratios of runs interleaved in one process, on the CPU.

The model is one linear layer, so that almost all of the time is the framework's. Absolute times depend on the machine;
compare the ratios.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer

FEATURES = 8


class Linear(LightningModule):
    """One layer that logs `num_logged` scalars a step."""

    def __init__(self, num_logged: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 1)
        self.names = [f"value_{number}" for number in range(num_logged)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).square().mean()
        for name in self.names:
            self.log(name, loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Counter(Callback):
    """A callback with one hook per batch."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *args: object) -> None:
        self.batches += 1


def plain_loop(loader: DataLoader) -> float:
    """Seconds of the loop that people write by hand."""
    model = Linear()
    optimizer = model.configure_optimizers()
    start = time.perf_counter()
    for batch_idx, batch in enumerate(loader):
        optimizer.zero_grad()
        model.training_step(batch, batch_idx).backward()
        optimizer.step()
    return time.perf_counter() - start


def trainer_loop(loader: DataLoader, *, num_logged: int = 0, num_callbacks: int = 0) -> float:
    """Seconds between the first batch and the end of the epoch."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[clock, *(Counter() for _ in range(num_callbacks))],
        )
        trainer.fit(Linear(num_logged), loader)
    return clock.seconds


class Clock(Callback):
    """Takes the time of the epoch."""

    seconds = 0.0

    def on_train_epoch_start(self, *args: object) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *args: object) -> None:
        self.seconds = time.perf_counter() - self.start


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead of a training step against the plain loop.")
    parser.add_argument("--steps", type=int, default=2000, help="steps of a run")
    parser.add_argument("--rounds", type=int, default=7, help="times that all runs are taken, in turn")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("fulmen").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    loader = DataLoader(TensorDataset(torch.randn(arguments.steps, FEATURES)))
    runs: dict[str, Callable[[], float]] = {
        "plain loop": lambda: plain_loop(loader),
        "Trainer, bare": lambda: trainer_loop(loader),
        "Trainer, 5 callbacks": lambda: trainer_loop(loader, num_callbacks=5),
        "Trainer, 1 logged value": lambda: trainer_loop(loader, num_logged=1),
        "Trainer, 10 logged values": lambda: trainer_loop(loader, num_logged=10),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds + 1):
        for name, run in runs.items():
            times[name].append(run())
    plain = times["plain loop"][1:]  # the first round warms up
    print(
        f"{'':28} {'us a step':>10} {'ratio':>7}   (medians of {arguments.rounds} rounds, {arguments.steps} steps each)"
    )
    for name, seconds in times.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(seconds[1:], plain, strict=True))
        print(f"{name:28} {statistics.median(seconds[1:]) / arguments.steps * 1e6:10.1f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
