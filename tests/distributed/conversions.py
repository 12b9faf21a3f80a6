"""One training saved and resumed on every mesh: module-level functions, as they run in spawned ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer, seed_everything
from fulmen.callbacks import ModelCheckpoint
from fulmen.fabric import Fabric
from fulmen.plugins.io import AsyncCheckpointIO
from fulmen.strategies import Strategy
from tests.support import quiet

__all__ = [
    "KINDS",
    "continue_from",
    "differences",
    "fit",
    "keep_in_background",
    "save",
    "save_and_load_by_fabric",
    "whole_content",
]

_PLAN = {"first": "colwise", "second": "rowwise"}
_GLOBAL_BATCH, _STEPS = 8, 4
_LIMIT = 0.5  # of the norm of gradients; some steps are above


def _fsdp(**options: Any) -> Any:
    from fulmen.strategies.fsdp import FSDPStrategy

    return FSDPStrategy(auto_wrap_policy={nn.LayerNorm}, **options)


def _model_parallel(data: int, tensor: int) -> Any:
    from fulmen.strategies.model_parallel import ModelParallelStrategy

    return ModelParallelStrategy(data, tensor, parallelize=_PLAN)


KINDS: dict[str, tuple[int, int, Callable[[], Strategy | str]]] = {
    "one": (1, 1, lambda: "auto"),
    "ddp": (2, 2, lambda: "ddp"),
    "fsdp full": (2, 2, _fsdp),
    "fsdp": (2, 2, lambda: _fsdp(state_dict_type="sharded")),
    "tensor": (2, 1, lambda: _model_parallel(1, 2)),
    "hsdp": (4, 4, lambda: _fsdp(state_dict_type="sharded", sharding_strategy="HYBRID_SHARD", device_mesh=(2, 2))),
    "fsdp x tensor": (4, 2, lambda: _model_parallel(2, 2)),
}
"""Name to number of processes, number of those that see different data, and the strategy."""


class Net(LightningModule):
    """Uneven sizes, a buffer, frozen weights, two groups and two optimizers' worth of state."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.first = nn.Linear(6, 14)
        self.second = nn.Linear(14, 5)
        self.last = nn.Linear(5, 1)
        self.fixed = nn.Linear(1, 1).requires_grad_(False)
        self.register_buffer("offset", torch.tensor([0.25]))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.second(torch.tanh(self.first(self.norm(x))))
        return self.fixed(self.last(hidden)) + self.offset  # type: ignore[no-any-return]  # a module returns Any

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("at", float(self.global_step))
        return (self(batch[0]) - batch[1]).square().mean()  # type: ignore[no-any-return]  # a module returns Any

    def configure_optimizers(self) -> Any:
        cut = [*self.first.parameters(), *self.second.parameters()]
        others = [*self.norm.parameters(), *self.last.parameters(), *self.fixed.parameters()]
        groups = [{"params": cut, "lr": 0.02}, {"params": others, "weight_decay": 0.1}]
        optimizer = torch.optim.AdamW(groups, lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Watch(Callback):
    """Notes the loss of each step, over all processes, and what was loaded."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.loaded: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.loaded = whole_content(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone())))


def whole_content(trainer: Trainer) -> dict[str, Any]:
    """Return weights and states of optimizers as they are in the running Trainer, whole, on every rank."""
    optimizers = [optimizer.state_dict() for optimizer in trainer.strategy.optimizers]
    content = {"state_dict": trainer.lightning_module.state_dict(), "optimizer_states": optimizers}
    if trainer.world_size > 1:
        from fulmen.strategies.shards import whole

        content = whole(content, keep=True)
    return {name: torch.utils._pytree.tree_map_only(Tensor, torch.clone, value) for name, value in content.items()}


def fit(kind: str, folder: str, *, epochs: int, ckpt_path: str | None = None, **options: Any) -> tuple[Trainer, Watch]:
    """Train a number of epochs of four steps each."""
    seed_everything(3)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(_GLOBAL_BATCH * _STEPS, 6, generator=generator)
    processes, shares, make = KINDS[kind]
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin() * 3), _GLOBAL_BATCH // shares)
    watch = Watch()
    arguments = quiet(Path(folder), devices=processes, strategy=make(), max_epochs=epochs, gradient_clip_val=_LIMIT)
    arguments["callbacks"] = [watch, *options.pop("callbacks", [])]
    trainer = Trainer(**{**arguments, **options})
    trainer.fit(Net(), loader, ckpt_path=ckpt_path)
    return trainer, watch


def save(folder: str, kinds: list[str]) -> None:
    """Train one epoch by each kind, and save."""
    for kind in kinds:
        trainer, _ = fit(kind, folder, epochs=1)
        trainer.save_checkpoint(f"{folder}/{kind}.ckpt")


def continue_from(folder: str, kinds: list[str], names: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Train the second epoch by each kind, from each checkpoint."""
    results = {}
    for kind in kinds:
        for name in names:
            _, watch = fit(kind, folder, epochs=2, ckpt_path=f"{folder}/{name}.ckpt")
            results[name, kind] = {"losses": watch.losses, "loaded": watch.loaded}
    return results


def keep_in_background(folder: str) -> dict[str, Any]:
    """Let `ModelCheckpoint` keep two folders of each step and a link, written by threads; then resume the last one."""
    checkpoints = f"{folder}/kept"

    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(
            checkpoints, filename="{step}", save_top_k=2, monitor="at", mode="max", save_last="link",
            every_n_train_steps=1,
        )  # fmt: skip

    def options() -> dict[str, Any]:
        return {"enable_checkpointing": True, "callbacks": [saver()], "plugins": [AsyncCheckpointIO()]}

    trainer, first = fit("fsdp", folder, epochs=1, **options())
    trainer.strategy.barrier()
    names = sorted(os.listdir(checkpoints))
    _, resumed = fit("fsdp", folder, epochs=2, ckpt_path="last", **options())
    return {"names": names, "losses": first.losses + resumed.losses}


def save_and_load_by_fabric(folder: str) -> dict[str, Any]:
    """Save two sharded models and their optimizers in one folder, and load them again; and one from a plain file."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy=_fsdp(state_dict_type="sharded"))
    fabric.launch()

    def trained(seed: int, steps: int) -> tuple[Any, Any]:
        torch.manual_seed(seed)
        inner = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        model, optimizer = fabric.setup(inner, torch.optim.AdamW(inner.parameters(), lr=0.1))
        for _ in range(steps):
            optimizer.zero_grad()
            fabric.backward(model(torch.ones(4, 3)).square().mean())
            optimizer.step()
        return model, optimizer

    def content(parts: dict[str, Any]) -> dict[str, Any]:
        from fulmen.strategies.shards import whole

        states: dict[str, Any] = whole({name: part.state_dict() for name, part in parts.items()}, keep=True)
        return states

    first, second = trained(1, 2), trained(2, 3)
    parts = {"a": first[0], "b": second[0], "of a": first[1], "of b": second[1]}
    fabric.save(f"{folder}/fabric.ckpt", {**parts, "step": 3})
    expected = content(parts)
    first, second = trained(3, 1), trained(4, 0)
    state = {"a": first[0], "b": second[0], "of a": first[1], "of b": second[1], "step": 0}
    rest = fabric.load(f"{folder}/fabric.ckpt", state)
    wrong = differences(expected, content({name: part for name, part in state.items() if name != "step"}))
    if fabric.is_global_zero:
        torch.save(expected["b"], f"{folder}/raw.ckpt")
    fabric.barrier()
    fabric.load_raw(f"{folder}/raw.ckpt", first[0])
    wrong += differences(expected["b"], content({"a": first[0]})["a"])
    alone = Fabric(accelerator="cpu", devices=1)._strategy.load_checkpoint(f"{folder}/fabric.ckpt")
    return {"wrong": wrong, "step": state["step"], "rest": rest, "numbers": list(alone["of a"]["state"])}


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Name the places where two nested values differ; tensors to the bit."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{place}: {sorted(map(str, first.keys() ^ second.keys()))}"]
        return [each for key in first for each in differences(first[key], second[key], f"{place}.{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{place}: length"]
        return [each for i in range(len(first)) for each in differences(first[i], second[i], f"{place}.{i}")]
    same = torch.equal(first, second) if isinstance(first, Tensor) else first == second
    return [] if same else [place]
