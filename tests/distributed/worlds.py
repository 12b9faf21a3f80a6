"""A run that can be interrupted on one number of processes and gone on with on another; it notes all that it sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from fulmen import LightningModule, Trainer, seed_everything
from fulmen.callbacks import LambdaCallback
from tests.support import quiet

__all__ = ["NUM_SAMPLES", "run_world", "seen_by_epoch"]

NUM_SAMPLES = 101


class Notes(LightningModule):
    """Keeps the samples and the loss of each batch, and logs by every reduction."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.mean_error = torchmetrics.MeanMetric()
        self.batches: list[tuple[int, int, list[int], float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        ids, x = batch
        errors = (self.net(x) - x.sum(1, keepdim=True).sin()).square()
        loss = errors.mean()
        if not self._is_repetition():
            self.batches.append((self.trainer.current_epoch, batch_idx, ids.tolist(), loss.item()))
        self.mean_error.update(errors)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("own", loss, on_step=False, on_epoch=True)
        self.log("count", float(len(x)), on_epoch=True, on_step=False, reduce_fx="sum")
        self.log("worst", errors.max(), on_epoch=True, on_step=False, reduce_fx="max")
        self.log("best", errors.min(), on_epoch=True, on_step=False, reduce_fx="min")
        self.log("error", self.mean_error, on_epoch=True, on_step=False)
        return loss  # type: ignore[no-any-return]  # a module returns Any

    def _is_repetition(self) -> bool:
        """Whether this rank has nothing left in the last batch, and only keeps step with the others."""
        loop = self.trainer.fit_loop
        return loop.is_last_batch and loop.batches is not None and loop.batches.last_size == 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Neighbors(BatchSampler):
    """A batch sampler of the user's own: batches of neighbors in random order."""

    def __init__(self, length: int, size: int) -> None:
        super().__init__(range(length), size, drop_last=False)
        self.groups = [list(range(start, min(start + size, length))) for start in range(0, length, size)]

    def __iter__(self) -> Any:
        return (self.groups[i] for i in torch.randperm(len(self.groups)).tolist())


def loader(batch_size: int, kind: str, **options: Any) -> DataLoader[Any]:
    x = torch.randn(NUM_SAMPLES, 6, generator=torch.Generator().manual_seed(7))
    data = TensorDataset(torch.arange(NUM_SAMPLES), x)
    if options.get("num_workers"):
        options["multiprocessing_context"] = "fork"
    if kind == "batch sampler":
        return DataLoader(data, batch_sampler=Neighbors(NUM_SAMPLES, batch_size), **options)
    if kind == "own generator":
        options["generator"] = torch.Generator().manual_seed(5)
    elif kind == "distributed sampler" and (replicas := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        rank = int(os.environ.get("RANK", "0"))
        return DataLoader(data, batch_size, sampler=DistributedSampler(data, replicas, rank, seed=3), **options)
    return DataLoader(data, batch_size, shuffle=True, **options)


def run_world(
    folder: str, batch_size: int, options: dict[str, Any], ckpt_path: str | None = None, save_at: int = 0
) -> dict[str, Any]:
    """Train two epochs on as many processes as the environment says; return what this rank saw and the epochs' metrics.

    Args:
        folder: Where the checkpoint goes.
        batch_size: Samples in each process' batch.
        options: `kind` of the loader, `loader` with more of its arguments; all others are arguments of the Trainer.
        ckpt_path: What to resume from.
        save_at: After which optimizer step to save, as `step=<save_at>.ckpt`.
    """
    seed_everything(1, verbose=False)
    options = dict(options)
    kind, more = options.pop("kind", "shuffle"), options.pop("loader", {})
    devices, model, metrics = int(os.environ.get("WORLD_SIZE", "1")), Notes(), []

    def save(run: Trainer, *_: Any) -> None:
        if run.global_step == save_at and not run.fit_loop.has_started_window:
            run.save_checkpoint(Path(folder, f"step={save_at}.ckpt"))

    notes = LambdaCallback(on_train_batch_end=save, on_train_epoch_end=lambda run, _: metrics.append(_numbers(run)))
    trainer = Trainer(
        **quiet(
            Path(folder), devices=devices, max_epochs=2, callbacks=[notes], log_every_n_steps=1,
            **{"strategy": "ddp" if devices > 1 else "auto", **options},
        )
    )  # fmt: skip
    trainer.fit(model, loader(batch_size, kind, **more), ckpt_path=ckpt_path)
    return {
        "batches": model.batches,
        "metrics": metrics,
        "weights": {name: value.detach().clone() for name, value in model.net.state_dict().items()},
        "steps": trainer.global_step,
        "num_batches": trainer.num_training_batches,
    }


def _numbers(trainer: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if not name.endswith("_step")}


def seen_by_epoch(results: list[dict[str, Any]]) -> dict[int, dict[int, tuple[list[int], float]]]:
    """Return for each epoch and batch index the samples of all ranks, and the mean loss over them.

    Args:
        results: What `run_world` returned on each rank.
    """
    seen: dict[int, dict[int, tuple[list[int], float]]] = {}
    for result in results:
        for epoch, batch_idx, ids, loss in result["batches"]:
            known, mean = seen.setdefault(epoch, {}).get(batch_idx, ([], 0.0))
            total = mean * len(known) + loss * len(ids)
            seen[epoch][batch_idx] = sorted(known + ids), total / (len(known) + len(ids))
    return seen
