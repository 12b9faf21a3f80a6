"""A program that is sent signals, by the tests of `test_signals_of_processes.py`: METHOD STRATEGY DEVICES FOLDER."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.demos import BoringModel
from fulmen.loggers import CSVLogger

SLOW = Path(sys.argv[4]) if len(sys.argv) > 4 else Path()


class Net(BoringModel):
    """Says when it is at work, where the test wants it to be, and then takes its time."""

    def work(self) -> None:
        with (SLOW / f"working_{self.global_rank}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.03)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if sys.argv[1] == "train":
            self.work()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if sys.argv[1] in ("validate", "stream") or (sys.argv[1] == "sanity") is self.trainer.sanity_checking:
            self.work()
        return super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.work()
        return super().test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.work()
        return super().predict_step(batch, batch_idx)


class Told(Callback):
    """Leaves in a file for each rank what it hears of the end."""

    def note(self, trainer: Trainer, text: str) -> None:
        with (SLOW / f"told_{trainer.global_rank}").open("a") as file:
            file.write(f"{text} at {trainer.global_step}\n")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.note(trainer, f"on_exception {type(exception).__name__}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.global_rank == 0:
            time.sleep(float(os.environ.get("SLOW_TEARDOWN", "0")))
        self.note(trainer, "teardown")


class Logger(CSVLogger):
    """Leaves how it was finished."""

    def finalize(self, status: str) -> None:
        super().finalize(status)
        with (SLOW / "finalized").open("a") as file:
            file.write(f"{status}\n")


class Stream(IterableDataset[Tensor]):
    """Has no length, and another end on each rank."""

    fulmen_sharded = True

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(600 + 400 * int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))):
            yield torch.ones(32)


def data(num_batches: int = 2000) -> DataLoader[Any]:
    """Return batches of one sample, fetched by a worker."""
    return DataLoader(torch.ones(num_batches, 32), num_workers=1)  # type: ignore[arg-type]  # a tensor is a dataset


def main() -> None:
    """Run a method of the Trainer for longer than anybody waits."""
    method, strategy, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
    trainer = Trainer(
        accelerator="cpu", strategy=strategy, devices=devices, max_epochs=-1, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Told(), ModelCheckpoint(SLOW / "saved")], default_root_dir=SLOW,
        logger=Logger(SLOW), num_sanity_val_steps=1000 if method == "sanity" else 0, val_check_interval=5,
    )  # fmt: skip
    if method in ("train", "validation", "sanity"):
        trainer.fit(Net(), data(), data())
    elif method == "stream":
        trainer.validate(Net(), DataLoader(Stream(), batch_size=1))
    else:
        getattr(trainer, method)(Net(), data(4000))


if __name__ == "__main__":
    main()
