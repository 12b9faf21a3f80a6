"""A Fabric loop computes what the same loop computes without it, to the bit, and costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulmen import Fabric
from tests.support import framework_frames

DataLoader: Any = torch.utils.data.DataLoader
KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}
WINDOW = 3


def fabric_on_cpu(**changes: Any) -> Fabric:
    return Fabric(**{"accelerator": "cpu", "devices": 1, **changes})


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def loader() -> Any:
    samples = torch.randn(24, 4, generator=torch.Generator().manual_seed(2))
    return DataLoader(list(samples), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))


def plain(kind: str, *, clip: bool, scheduled: bool) -> tuple[list[float], list[Tensor]]:
    model = network()
    optimizer = KINDS[kind](model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    losses = []
    for _ in range(2):
        for idx, batch in enumerate(loader()):
            loss = model(batch).square().mean() / WINDOW
            losses.append(loss.item())
            loss.backward()
            if (idx + 1) % WINDOW == 0:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                optimizer.zero_grad()
                if scheduled:
                    scheduler.step()
    return losses, list(model.state_dict().values())


def with_fabric(kind: str, *, clip: bool, scheduled: bool) -> tuple[list[float], list[Tensor]]:
    fabric = fabric_on_cpu()
    model: Any = network()
    model, optimizer = fabric.setup(model, KINDS[kind](model.parameters()))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    losses = []
    for _ in range(2):
        for idx, batch in enumerate(fabric.setup_dataloaders(loader())):
            loss = model(batch).square().mean() / WINDOW
            losses.append(loss.item())
            fabric.backward(loss)
            if (idx + 1) % WINDOW == 0:
                if clip:
                    fabric.clip_gradients(model, optimizer, max_norm=0.05)
                optimizer.step()
                optimizer.zero_grad()
                if scheduled:
                    scheduler.step()
    return losses, list(model.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"clip": False, "scheduled": False}, {"clip": True, "scheduled": True}], ids=str)
def test_losses_and_weights_are_those_of_the_plain_loop(kind: str, options: dict[str, bool]) -> None:
    expected_losses, expected_weights = plain(kind, **options)
    losses, weights = with_fabric(kind, **options)

    assert losses == expected_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, expected_weights, strict=True))


def _calls(function: Callable[[], object]) -> list[str]:
    names: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "fulmen" in frame.f_code.co_filename and "tests" not in frame.f_code.co_filename:
            names.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


def test_a_step_makes_few_calls_of_ours() -> None:
    fabric = fabric_on_cpu()
    model: Any = nn.Linear(4, 2)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = iter(fabric.setup_dataloaders(loader()))

    def step() -> None:
        loss = model(next(batches)).sum()
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()

    step()

    # the next batch; zero_grad and what it calls; backward; the lookup of `step`, itself, and what it calls
    assert len(_calls(step)) <= 7, _calls(step)


def test_an_error_in_forward_shows_no_frame_of_ours() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError("here")

    model = fabric_on_cpu().setup(Fails())
    with pytest.raises(ArithmeticError) as caught:
        model(torch.ones(1))

    assert framework_frames(caught.tb) == 0
