"""Strategies for XLA devices, with a stand-in for `torch_xla` that runs two ranks one after the other."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.plugins.io.xla import XLACheckpointIO
from fulmen.plugins.precision.xla import XLAPrecision
from fulmen.strategies import STRATEGY_REGISTRY, SingleDeviceXLAStrategy, XLAStrategy
from fulmen.strategies.launchers import XLALauncher
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import is_installed

CPU = torch.device("cpu")


class _Loader:
    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader, self.device = loader, device


@pytest.fixture
def calls(monkeypatch):
    """Install a runtime of two ranks that see the same values; return what was asked of it."""
    noted: list[Any] = []

    def note(name: str, answer: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            noted.append(name)
            return answer(*args, **kwargs) if callable(answer) else answer

        return function

    contents: dict[str, dict[str, Any]] = {
        "torch_xla": {"device": note("device", CPU), "sync": note("sync", None)},
        "torch_xla.core": {},
        "torch_xla.core.xla_model": {
            "REDUCE_SUM": "sum",
            "all_reduce": note("all_reduce", lambda op, tensor, scale: (tensor + tensor) * scale),
            "all_gather": note("all_gather", lambda tensor, dim: torch.cat([tensor, tensor], dim)),
            "mesh_reduce": note("mesh_reduce", lambda tag, data, reduce: reduce([data, data])),
            "rendezvous": note("rendezvous", lambda tag: noted.append(tag)),
            "broadcast_master_param": note("broadcast_master_param", None),
            "optimizer_step": note("optimizer_step", None),
        },
        "torch_xla.core.functions": {
            "all_gather": note("gather_with_gradients", lambda t, dim: torch.cat([t, t], dim))
        },
        "torch_xla.runtime": {
            "world_size": note("world_size", 2),
            "global_ordinal": note("global_ordinal", 1),
            "local_ordinal": note("local_ordinal", 1),
            "host_index": note("host_index", 0),
        },
        "torch_xla.distributed": {},
        "torch_xla.distributed.parallel_loader": {"MpDeviceLoader": _Loader},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return noted


@pytest.fixture
def strategy(calls, monkeypatch):
    from fulmen.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 0)
    return XLAStrategy(parallel_devices=[torch.device("xla", 0), torch.device("xla", 1)])


@pytest.mark.skipif(is_installed("torch_xla"), reason="is about its absence")
@pytest.mark.parametrize("make", [XLAStrategy, SingleDeviceXLAStrategy])
def test_torch_xla_is_needed(make):
    with pytest.raises(ModuleNotFoundError, match=r"fulmen\[xla\]"):
        make()


def test_names_are_registered_without_torch_xla():
    assert STRATEGY_REGISTRY["xla"]["strategy"] is XLAStrategy
    assert STRATEGY_REGISTRY["xla_debug"]["init_params"] == {"debug": True}
    for name in ("single_xla", "single_tpu"):
        assert STRATEGY_REGISTRY[name]["strategy"] is SingleDeviceXLAStrategy


def test_before_the_launch_the_runtime_is_left_alone(strategy, calls):
    assert isinstance(strategy.launcher, XLALauncher)
    assert strategy.num_processes == 2
    assert strategy.broadcast("x") == "x"
    strategy.barrier()
    with pytest.raises(RuntimeError, match="have not been launched"):
        strategy.all_reduce(1.0)
    with pytest.raises(RuntimeError, match="have not been launched"):
        _ = strategy.root_device
    assert strategy.chosen_parts == {"cluster_environment", "parallel_devices"}
    assert calls == []


def test_processes_talk_through_the_runtime(strategy, calls):
    strategy.set_local_rank(1)

    assert (strategy.world_size, strategy.global_rank, strategy.local_rank) == (2, 1, 1)
    assert strategy.all_reduce(torch.tensor(3)).item() == 3.0
    assert strategy.all_reduce({"a": 1.5}, reduce_op="sum")["a"].item() == 3.0
    assert strategy.reduce(output=3.0, reduce_op="sum").item() == 6.0
    assert strategy.all_gather(torch.ones(3)).shape == (2, 3)
    assert strategy.all_gather(1.0, sync_grads=True).tolist() == [1.0, 1.0]
    assert strategy.gather_objects("x") == ["x", "x"]
    assert strategy.agree([1, 2], "sum") == [2, 4]
    assert strategy.reduce_boolean_decision(True)
    assert strategy.broadcast("x", src=1) == "x"
    strategy.barrier("here")
    assert calls[-2:] == ["rendezvous", "here"]
    assert "gather_with_gradients" in calls
    with pytest.raises(ValueError, match="not possible on XLA"):
        strategy.all_reduce(1.0, reduce_op="max")


def test_modules_are_not_wrapped_and_get_the_weights_of_rank_0(strategy, calls):
    strategy.set_local_rank(0)
    module = nn.Linear(2, 2)

    assert strategy.setup_module(module) is module
    assert calls[-1] == "broadcast_master_param"
    with strategy.no_backward_sync(module):
        pass


def test_loaders_move_batches_in_the_background(strategy):
    strategy.set_local_rank(0)
    loader = DataLoader(TensorDataset(torch.ones(4)))

    wrapped = strategy.process_dataloader(loader)

    assert isinstance(wrapped, _Loader)
    assert wrapped.dataset is loader.dataset  # type: ignore[attr-defined]  # added
    assert strategy.process_dataloader(wrapped) is wrapped
    with pytest.raises(MisconfigurationException, match="DataLoader"):
        strategy.process_dataloader([1, 2])


def test_shared_weights_stay_shared_on_one_device(calls):
    strategy = SingleDeviceXLAStrategy(CPU, debug=True)
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight

    strategy.module_to_device(module)

    assert module[1].weight is module[0].weight
    assert isinstance(strategy.checkpoint_io, XLACheckpointIO)
    assert isinstance(strategy.precision_plugin, XLAPrecision)
    assert strategy.chosen_parts == frozenset()
    assert SingleDeviceXLAStrategy(2).root_device == torch.device("xla", 2)
