"""A script for torchrun that loses a worker: `elastic.py FOLDER GLOBAL_BATCH`.

`DIES_AT=LOCAL_RANK:STEP[:agent]` in its environment kills one worker of the first attempt after an optimizer step, with
`agent` also the torchrun that started it, as if the machine were gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer, seed_everything
from fulmen.callbacks import Callback, ModelCheckpoint

NUM_SAMPLES = 96


class Net(LightningModule):
    """Writes a line about each of its steps."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.notes = notes

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        ids, x = batch
        loss: torch.Tensor = (self.net(x) - x.sum(1, keepdim=True).sin()).square().mean()
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        line = {"attempt": attempt, "world_size": self.trainer.world_size, "step": self.trainer.global_step}
        with self.notes.open("a") as file:
            file.write(json.dumps({**line, "ids": ids.tolist()}) + "\n")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Dies(Callback):
    """Ends its process after an optimizer step without a word."""

    def __init__(self, step: int, *, with_agent: bool) -> None:
        self.step = step
        self.with_agent = with_agent

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.with_agent:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, global_batch = Path(sys.argv[1]), int(sys.argv[2])
    seed_everything(1, verbose=False)
    callbacks: list[Callback] = [ModelCheckpoint(folder / "checkpoints", every_n_train_steps=3, save_top_k=-1)]
    local_rank, _, moment = os.environ.get("DIES_AT", "").partition(":")
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and local_rank == os.environ["LOCAL_RANK"]:
        callbacks.append(Dies(int(moment.split(":")[0]), with_agent=moment.endswith(":agent")))
    trainer = Trainer(
        accelerator="cpu", strategy="ddp", max_epochs=2, callbacks=callbacks, logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    x = torch.randn(NUM_SAMPLES, 6, generator=torch.Generator().manual_seed(7))
    data = TensorDataset(torch.arange(NUM_SAMPLES), x)
    loader = DataLoader(data, global_batch // int(os.environ["WORLD_SIZE"]), shuffle=True)
    model = Net(folder / f"notes_of_{os.getpid()}.jsonl")
    trainer.fit(model, loader, ckpt_path="auto")
    if trainer.is_global_zero:
        torch.save(model.net.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    main()
