"""A run of two ranks, or of one, that stands still: `hanging_script.py HOW RANK DEVICES ACTION STRATEGY`."""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Literal

import torch
from torch.utils.data import DataLoader

from fulmen import Fabric, Trainer
from fulmen.callbacks import HangWatchdog
from fulmen.demos.boring_classes import BoringModel, RandomDataset

how, who, devices, strategy = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[5]
action: Literal["report", "abort"] = "abort" if sys.argv[4] == "abort" else "report"


def stand_still() -> None:
    if how == "sleep":
        time.sleep(1000)
    elif how == "loop":
        while True:
            pass
    elif how == "locked":
        ctypes.PyDLL(None).sleep(1000)
    elif how == "for_a_while":
        time.sleep(2.2)


class Hanging(BoringModel):
    def training_step(self, batch, batch_idx):
        if batch_idx in (3, 5):
            time.sleep(0.5)  # the watchdog sees that steps are done
        if batch_idx == 3 and self.trainer.global_rank == who:
            stand_still()
        return super().training_step(batch, batch_idx)

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 16), batch_size=2)


def train() -> None:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=HangWatchdog(1.5, action, first_step_timeout=100),
    )
    trainer.fit(Hanging())


def save_on_one_rank() -> None:
    """The mistake of calling `fabric.save` on rank 0 only: it waits for the others, and they for it."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = fabric.setup(model, optimizer)
    with HangWatchdog(1.5, action, first_step_timeout=100).watch() as loop:
        for batch_idx in range(20):
            loop.progress(epoch=0, batch_idx=batch_idx)
            fabric.backward(model(torch.ones(1, 2)).sum())
            optimizer.step()
            if batch_idx == 3:
                time.sleep(0.5)
                if fabric.global_rank == 0:
                    fabric.save(sys.argv[6], {"model": model})


if __name__ == "__main__":
    save_on_one_rank() if how == "save" else train()
