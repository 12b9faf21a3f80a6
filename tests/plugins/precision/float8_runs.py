"""What each rank runs for the tests of weights that are gathered in float8; torchao emulates the products."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen as L
from fulmen.plugins.precision import Float8Precision
from fulmen.strategies import FSDPStrategy

__all__ = ["fabric_steps", "gathered_bytes", "resumed", "tied"]

_SIZE = 48


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(_SIZE, 80)  # 80 rows are not divisible by 3 ranks
        self.down = nn.Linear(80, _SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))  # type: ignore[no-any-return]  # modules return Any


class Blocks(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(_SIZE, 16)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x).float()  # type: ignore[no-any-return]  # modules return Any

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(192, _SIZE, generator=generator), torch.randn(192, 16, generator=generator))


def precision(is_gathered: bool) -> Float8Precision:
    from torchao.float8 import Float8LinearConfig  # type: ignore[import-untyped]  # has no types

    recipe = Float8LinearConfig(enable_fsdp_float8_all_gather=is_gathered, pad_inner_dim=True)
    return Float8Precision(recipe, emulate=True)


def fit(folder: Path, is_gathered: bool, steps: int, kind: Any, ckpt_path: Path | None = None) -> Blocks:
    L.seed_everything(0, verbose=False)
    module = Blocks()
    trainer = L.Trainer(
        accelerator="cpu", devices=_num_ranks(),
        strategy=FSDPStrategy(state_dict_type=kind), plugins=precision(is_gathered), max_steps=steps,
        accumulate_grad_batches=2, gradient_clip_val=0.5, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(), 4), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"{is_gathered}_{steps}.ckpt")
    return module


def _num_ranks() -> int:
    return int(os.environ["WORLD_SIZE"])


def resumed(folder: Path, kind: Any) -> dict[str, list[list[float]]]:
    """Losses of a run of 4 and its resume to 6 steps, with weights gathered in 32 bit and in float8."""
    losses: dict[str, list[list[float]]] = {}
    for name, is_gathered in (("32 bit", False), ("float8", True)):
        first = fit(folder, is_gathered, 4, kind)
        second = fit(folder, is_gathered, 6, kind, folder / f"{is_gathered}_4.ckpt")
        losses[name] = [first.losses, second.losses]
    crossed = fit(folder, True, 6, kind, folder / "False_4.ckpt")
    losses["crossed"] = [losses["32 bit"][0], crossed.losses]
    return losses


def fabric_steps(is_gathered: bool, writes: bool) -> list[float]:
    """Losses with a Fabric; with `writes`, there are no steps, but the weights grow behind the back of autograd."""
    L.seed_everything(0, verbose=False)
    fabric = L.Fabric(accelerator="cpu", devices=_num_ranks(), strategy="fsdp", plugins=precision(is_gathered))
    fabric.launch()
    plain = Blocks()
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), 0.1))
    losses = []
    for x, y in fabric.setup_dataloaders(DataLoader(data(), 8)):
        loss = nn.functional.mse_loss(model(x), y)
        fabric.backward(loss)
        if not writes:
            optimizer.step()
        optimizer.zero_grad()
        if writes:
            for parameter in plain.parameters():
                shard: Any = parameter.detach()
                shard.to_local().numpy()[...] *= 1.5  # no counter of versions sees it
        losses.append(loss.item())
    return losses[:4]


def gathered_bytes(recipe: str) -> int:
    """Bytes that a rank sends in the forward pass of a model with one of torchao's recipes."""
    L.seed_everything(0, verbose=False)
    fabric = L.Fabric(
        accelerator="cpu", devices=_num_ranks(), strategy="fsdp", plugins=Float8Precision(recipe, emulate=True)
    )
    fabric.launch()
    model = fabric.setup(Blocks())
    name = next(name for name in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, name))  # by version
    sent, plain_gather = 0, getattr(dist, name)

    def gather(output_tensor: Tensor, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        sent += input_tensor.nbytes
        return plain_gather(output_tensor, input_tensor, *args, **kwargs)

    with mock.patch.object(dist, name, gather):
        model(torch.ones(2, _SIZE))
    return sent


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, _SIZE)
        self.body = nn.Linear(_SIZE, _SIZE)
        self.head = nn.Linear(_SIZE, 32, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.body(self.embedding(tokens))
        self.seen = [type(layer.weight).__name__ for layer in (self.body, self.head)]
        return self.head(hidden)  # type: ignore[no-any-return]  # modules return Any


def tied() -> list[str]:
    """Kinds of the weights while a model computes that reads one of them in two layers."""
    fabric = L.Fabric(accelerator="cpu", devices=_num_ranks(), strategy="fsdp", plugins=precision(True))
    fabric.launch()
    plain = Tied()
    model = fabric.setup(plain)
    assert model(torch.arange(8)).isfinite().all()
    assert plain.head.weight is plain.embedding.weight
    return plain.seen
