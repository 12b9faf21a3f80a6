"""`torchrun sharded_program.py PACKAGE ACTION FOLDER`: train with shards, then save, or resume; print the losses."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
PACKAGE, ACTION, FOLDER = sys.argv[1:]
core: Any = importlib.import_module(PACKAGE)
strategies: Any = importlib.import_module(f"{PACKAGE}.strategies")


class Net(core.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.losses: list[float] = []
        self.net: nn.Module | None = None

    def configure_model(self) -> None:
        if self.net is None:
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))
            fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert self.net is not None
        loss = self.net(batch).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        assert self.net is not None
        groups = [{"params": self.net[2].parameters()}, {"params": self.net[0].parameters(), "lr": 0.05}]  # type: ignore[index]  # a Sequential
        optimizer = torch.optim.AdamW(groups, lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def main() -> None:
    """Train one epoch and save, or go on from there for another one."""
    data: Any = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
    trainer = core.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=1 if ACTION == "save" else 2,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=os.path.dirname(FOLDER),
    )
    module = Net()
    trainer.fit(module, DataLoader(data, 4), ckpt_path=FOLDER if ACTION == "resume" else None)
    if ACTION == "save":
        trainer.save_checkpoint(FOLDER)
    if trainer.is_global_zero:
        sys.stdout.write("RESULT " + json.dumps({"losses": module.losses, "step": trainer.global_step}) + "\n")


if __name__ == "__main__":
    main()
