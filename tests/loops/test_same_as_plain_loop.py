"""Training with the Trainer computes, to the bit, what the loop written by hand computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from tests.support import quiet

EPOCHS, BATCHES, SIZE = 3, 7, 4
MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], Any]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(BATCHES * SIZE, 8, generator=generator)
    y = torch.randint(0, 2, (BATCHES * SIZE,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=SIZE, shuffle=True)


def loss_of(net: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(net(x), y)


class Model(LightningModule):
    def __init__(self, optimizer: MakeOptimizer, scheduler: MakeScheduler | None, interval: str) -> None:
        super().__init__()
        self.net = network()
        self.make = optimizer, scheduler, interval
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = loss_of(self.net, batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        make, make_scheduler, interval = self.make
        optimizer = make(self.parameters())
        if make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make_scheduler(optimizer), "interval": interval}}


class ThroughClosure(Model):
    """The same, but stepping through a closure, as every module that overrides `optimizer_step` does."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


def plain_loop(  # noqa: C901 - every case in one place, as a person would write the loop
    optimizer: MakeOptimizer,
    scheduler: MakeScheduler | None = None,
    interval: str = "epoch",
    accumulate: int = 1,
    clip: tuple[str, float] | None = None,
) -> tuple[nn.Module, list[float]]:
    net, data, losses = network(), loader(), []
    opt = optimizer(net.parameters())
    sched = scheduler(opt) if scheduler else None
    torch.manual_seed(3)
    for _ in range(EPOCHS):
        for index, batch in enumerate(data):
            start = index - index % accumulate
            window = min(accumulate, BATCHES - start)

            def closure(batch: Any = batch, window: int = window, index: int = index) -> Tensor:
                loss = loss_of(net, batch)
                losses.append(loss.item())
                if index % accumulate == 0:
                    opt.zero_grad()
                (loss / window if window > 1 else loss).backward()
                return loss

            if isinstance(opt, torch.optim.LBFGS):
                opt.step(closure)
            else:
                closure()
                if index - start == window - 1:
                    if clip and clip[0] == "norm":
                        nn.utils.clip_grad_norm_(net.parameters(), clip[1])
                    elif clip:
                        nn.utils.clip_grad_value_(net.parameters(), clip[1])
                    opt.step()
            if sched and interval == "step" and index - start == window - 1:
                sched.step()
        if sched and interval == "epoch":
            sched.step()
    return net, losses


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


def halving(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


@pytest.mark.parametrize("kind", [Model, ThroughClosure])
@pytest.mark.parametrize(
    ("optimizer", "settings", "schedule"),
    [
        pytest.param(sgd, {}, (None, "epoch"), id="sgd"),
        pytest.param(adam, {}, (None, "epoch"), id="adam"),
        pytest.param(lbfgs, {}, (None, "epoch"), id="lbfgs"),
        pytest.param(adam, {"accumulate": 3}, (None, "epoch"), id="accumulation with a short last window"),
        pytest.param(sgd, {"clip": ("norm", 0.1)}, (None, "epoch"), id="clipping by norm"),
        pytest.param(sgd, {"clip": ("value", 0.01)}, (None, "epoch"), id="clipping by value"),
        pytest.param(sgd, {}, (halving, "epoch"), id="scheduler per epoch"),
        pytest.param(adam, {"accumulate": 2}, (cosine, "step"), id="scheduler per step with accumulation"),
    ],
)
def test_losses_and_weights_are_those_of_the_plain_loop(
    kind: type[Model], optimizer: MakeOptimizer, settings: dict[str, Any], schedule: Any, tmp_path: Path
) -> None:
    expected_net, expected_losses = plain_loop(optimizer, *schedule, **settings)
    clip = settings.get("clip")
    trainer = Trainer(
        **quiet(
            tmp_path,
            max_epochs=EPOCHS,
            accumulate_grad_batches=settings.get("accumulate", 1),
            gradient_clip_val=clip[1] if clip else None,
            gradient_clip_algorithm=clip[0] if clip else None,
        )
    )
    model, data = kind(optimizer, *schedule), loader()
    torch.manual_seed(3)

    trainer.fit(model, data)

    assert model.losses == expected_losses
    for name, weight in expected_net.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], weight), name


def test_the_last_window_of_a_loader_without_length_is_weighted_by_its_own_batches(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(torch.arange(5, dtype=torch.float32).reshape(5, 1))

    class Linear(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.gradients: list[float] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return (self.weight * batch).sum()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert self.weight.grad is not None
            self.gradients.append(self.weight.grad.item())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Linear()
    Trainer(**quiet(tmp_path, accumulate_grad_batches=2)).fit(model, DataLoader(Stream(), batch_size=1))

    assert model.gradients == [0.5, 2.5, 4.0]


@pytest.mark.filterwarnings("ignore:`training_step` returned None")
def test_a_skipped_batch_does_not_step_and_does_not_dilute_its_window(tmp_path: Path) -> None:
    class Skipping(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            return None if batch_idx in (1, 2, 3) else self.weight.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model, trainer = Skipping(), Trainer(**quiet(tmp_path, accumulate_grad_batches=2))
    trainer.fit(model, DataLoader(torch.zeros(4, 1)))  # type: ignore[arg-type]  # a tensor is a dataset

    # window 1: batch 0 counts alone, window 2: nothing to step on
    assert trainer.global_step == 1
    assert torch.allclose(model.weight, torch.tensor([0.9]))
