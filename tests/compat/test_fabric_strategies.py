from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fulmen
from fulmen.compat import _fabric_loggers as fabric_loggers
from fulmen.compat import _fabric_strategies as fabric_strategies
from fulmen.compat._fabric_strategies import DataParallelStrategy, SingleDeviceStrategy
from fulmen.fabric.fabric import Fabric
from fulmen.loggers import csv_logs
from fulmen.strategies import single_device


class Watched(SingleDeviceStrategy):
    """A strategy of a user, written for `lightning.fabric`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def backward(self, tensor: Tensor, module: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.calls.append("backward")
        super().backward(tensor, module, *args, **kwargs)

    def save_checkpoint(self, path, state, storage_options=None, filter=None):
        self.calls.append(f"save {sorted(state)}")
        super().save_checkpoint(path, state, storage_options, filter)


def test_what_a_users_strategy_overrides_holds_in_fabric(tmp_path: Path) -> None:
    strategy = Watched()
    fabric = Fabric(strategy=strategy)
    model = nn.Linear(2, 1)
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    fabric.backward(wrapped(torch.ones(1, 2)).sum(), model=wrapped)
    optimizer.step()
    fabric.save(tmp_path / "state.ckpt", {"model": wrapped, "step": 3})

    assert strategy.calls == ["backward", "save ['model', 'step']"]
    content = torch.load(tmp_path / "state.ckpt", weights_only=True)
    assert content["step"] == 3
    assert torch.equal(content["model"]["weight"], model.weight)


def test_states_go_through_the_strategy_as_in_fabric(tmp_path: Path) -> None:
    strategy, path = SingleDeviceStrategy(), tmp_path / "state.ckpt"
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    strategy.save_checkpoint(path, {"model": model, "step": 3}, filter={"model": lambda name, _: name == "weight"})
    state = {"model": other, "step": 0}
    rest = strategy.load_checkpoint(path, state, strict=False)

    assert (rest, state["step"]) == ({}, 3)
    assert torch.equal(other.weight, model.weight)
    assert not torch.equal(other.bias, model.bias)
    assert sorted(strategy.load_checkpoint(path)) == ["model", "step"]


def test_a_name_that_the_file_lacks_is_an_error_if_strict(tmp_path: Path) -> None:
    strategy, path = SingleDeviceStrategy(), tmp_path / "state.ckpt"
    strategy.save_checkpoint(path, {"step": 3})

    with pytest.raises(KeyError, match="epoch"):
        strategy.load_checkpoint(path, {"epoch": 0})


def test_a_norm_that_is_not_finite_is_an_error() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model(torch.ones(1, 2)) * float("inf")).sum().backward()

    with pytest.raises(RuntimeError, match="non-finite"):
        SingleDeviceStrategy().clip_gradients_norm(model, optimizer, max_norm=1.0)


def test_data_parallel_reduces_a_collection() -> None:
    reduced = DataParallelStrategy(parallel_devices=[torch.device("cpu")]).all_reduce(
        collection=[torch.tensor([1.0, 3.0])]
    )

    assert reduced == [torch.tensor(2.0)]


def test_other_names_are_answered_by_ours_and_not_by_subclasses() -> None:
    named: Any = Fabric(accelerator="cpu", devices=1).strategy

    assert isinstance(named, fabric_strategies.Strategy)
    assert isinstance(named, SingleDeviceStrategy)
    assert not isinstance(named, Watched)
    assert issubclass(single_device.SingleDeviceStrategy, SingleDeviceStrategy)
    assert not issubclass(fulmen.Trainer, fabric_strategies.Strategy)
    assert issubclass(csv_logs.CSVLogger, fabric_loggers.CSVLogger)
