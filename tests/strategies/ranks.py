"""What the tests of strategies run on each rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.plugins.environments.torchelastic import TorchElasticEnvironment
from fulmen.strategies.ddp import DDPStrategy

__all__ = ["FakeTrainer", "Net", "batch_of", "joined", "train", "weights"]


class Net(nn.Module):
    """A module with steps, small enough to compare all its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 1)
        self.automatic_optimization = True

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out

    def training_step(self, batch: Tensor, batch_idx: int = 0) -> Any:
        return {"loss": self(batch).square().mean()}

    def validation_step(self, batch: Tensor, batch_idx: int = 0) -> Tensor:
        out: Tensor = self(batch).mean()
        return out


@dataclass
class _State:
    fn: str


@dataclass
class FakeTrainer:
    """As much of a Trainer as `Strategy.setup` asks for."""

    make: Callable[[Any], torch.optim.Optimizer]
    module: Any
    fn: str = "fit"
    local_rank: int = 0
    state: _State = field(init=False)

    def __post_init__(self) -> None:
        self.state = _State(self.fn)

    def configured_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        return [self.make(self.module.parameters())], []


def joined(**kwargs: Any) -> DDPStrategy:
    """Return the strategy of this rank, of two on this machine."""
    strategy = DDPStrategy(
        parallel_devices=[torch.device("cpu")] * 2, cluster_environment=TorchElasticEnvironment(), **kwargs
    )
    strategy.setup_environment()
    return strategy


def batch_of(step: int, rank: int, world_size: int) -> Tensor:
    """Return this rank's share of the batch of a step."""
    whole = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return whole[rank::world_size]


def weights(module: nn.Module) -> list[Tensor]:
    """Return copies of the parameters."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def train(
    strategy: Any,
    module: Any,
    make: Callable[[Any], torch.optim.Optimizer],
    *,
    steps: int = 4,
    window: int = 1,
    max_norm: float = 0.0,
) -> torch.optim.Optimizer:
    """Train with the verbs of a strategy, as the loop does; return the optimizer."""
    strategy.connect(module)
    strategy.setup(FakeTrainer(make, module))
    optimizer: torch.optim.Optimizer = strategy.optimizers[0]
    rank, world_size = strategy.global_rank, strategy.world_size
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(window):
            batch = batch_of(step * window + part, rank, world_size)
            if part < window - 1:
                with strategy.block_backward_sync():
                    loss = strategy.training_step(batch, step)["loss"] / window
                    strategy.backward(loss, optimizer)
            else:
                loss = strategy.training_step(batch, step)["loss"] / window
                strategy.backward(loss, optimizer)
        if max_norm:
            strategy.clip_gradients_norm(module, optimizer, max_norm)
        strategy.optimizer_step(optimizer)
    return optimizer
