"""Real runs on two ranks, measured: the storage of their tensors."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fulmen import Callback, Trainer
from fulmen.planning.ledger import Ledger, local_tensors
from tests.planning.models import Alternating, Block, Language

__all__ = ["CONFIGURATIONS", "make_trainer", "run_measured"]

WIDTH, DEPTH, WORDS, BATCH, LENGTH = 512, 16, 4096, 4, 32
NUM_STEPS = 3  # from the second on, DDP has the buckets it keeps
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "full shard": {"strategy": {}},
    "shard grad op, two batches a step": {"strategy": {"sharding_strategy": "SHARD_GRAD_OP"}, "accumulate": 2},
    "full shard, bf16-mixed, SGD": {"strategy": {}, "precision": "bf16-mixed", "optimizer": "SGD"},
    "full shard, checkpointing": {"strategy": {"activation_checkpointing_policy": {Block}}},
    "ddp, manual, some unused": {"strategy": "ddp_find_unused_parameters_true", "module": Alternating},
    "full shard, manual": {"strategy": {}, "module": Alternating},
    "tensor parallel": {"parallelize": {"layers.*.up": "colwise", "layers.*.down": "rowwise"}},
}


def make_module(name: str) -> Language:
    """Return the module of a configuration."""
    kind: type[Language] = CONFIGURATIONS[name].get("module", Language)
    return kind(WIDTH, DEPTH, WORDS, optimizer=CONFIGURATIONS[name].get("optimizer", "AdamW"))


def make_trainer(name: str, folder: Path, **settings: Any) -> Trainer:
    """Return a Trainer of two ranks."""
    configuration = CONFIGURATIONS[name]
    strategy = configuration.get("strategy")
    if isinstance(strategy, dict):
        from fulmen.strategies.fsdp import FSDPStrategy

        strategy = FSDPStrategy(auto_wrap_policy={Block}, **strategy)
    elif strategy is None:
        from fulmen.strategies.model_parallel import ModelParallelStrategy

        strategy = ModelParallelStrategy(parallelize=configuration["parallelize"], tensor_parallel_size=2)
    accumulate = configuration.get("accumulate", 1)
    return Trainer(
        accelerator="cpu", devices=2, strategy=strategy, precision=configuration.get("precision", "32-true"),
        accumulate_grad_batches=accumulate, limit_train_batches=NUM_STEPS * accumulate, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        **settings,
    )  # fmt: skip


class _Measuring(Callback):
    """Watches storage from before the set-up on; what counts is the last step."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.begin = 0
        self.result: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.ledger.__enter__()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        gc.collect()
        self.ledger.assign(local_tensors([*pl_module.parameters(), *pl_module.buffers()]), "weights")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
        if batch_idx == (NUM_STEPS - 1) * trainer.accumulate_grad_batches:
            self.begin = self.ledger.moment()
            self.ledger.forget_work()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        states = [optimizer.state for optimizer in trainer.optimizers]
        self.ledger.assign(local_tensors([list(state.values()) for state in states]), "optimizer state")
        self.result = {
            "flops": self.ledger.flops,
            "exchanges": sorted(
                (each.kind, count, self.ledger.payload[each]) for each, count in self.ledger.calls.items()
            ),
        }

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.ledger.assign(local_tensors([each.grad for each in pl_module.parameters()]), "gradients")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.ledger.__exit__(None, None, None)
        self.result |= {
            "peak": self.ledger.peak(self.begin)[0].total,
            **{role: self.ledger.most_of(role, self.begin) for role in ("weights", "gradients", "optimizer state")},
        }


def run_measured(name: str, folder: str) -> dict[str, Any]:
    """Train for some steps; return what this rank held, in bytes."""
    torch.manual_seed(0)
    trainer = make_trainer(name, Path(folder), callbacks=[measuring := _Measuring()])
    data: Any = torch.randint(WORDS, (2 * BATCH * 8, LENGTH))
    trainer.fit(make_module(name), DataLoader(data, batch_size=BATCH))
    return measuring.result
