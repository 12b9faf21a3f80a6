"""Copies of a module in one process. The copies themselves need GPUs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen.strategies import STRATEGY_REGISTRY, DataParallelStrategy
from tests.strategies.ranks import Net

CPU = torch.device("cpu")


@pytest.fixture
def strategy():
    return DataParallelStrategy(parallel_devices=[CPU, CPU])


def test_there_is_one_process_and_nothing_to_launch(strategy):
    strategy.setup_environment()

    assert (strategy.world_size, strategy.global_rank, strategy.num_processes) == (1, 0, 1)
    assert strategy.launcher is None
    assert strategy.root_device == CPU
    assert strategy.gather_objects(1) == [1]
    assert strategy.agree([2]) == [2]
    assert strategy.reduce_boolean_decision(True)
    assert strategy.broadcast("x") == "x"
    strategy.barrier()
    assert strategy.all_gather(torch.ones(2)).shape == (2,)
    assert isinstance(STRATEGY_REGISTRY.get("dp"), DataParallelStrategy)


def test_outputs_of_the_copies_are_averaged(strategy):
    outputs = {"loss": torch.tensor([1.0, 3.0]), "count": torch.tensor([1, 2])}

    averaged = strategy.all_reduce(outputs)

    assert {name: value.item() for name, value in averaged.items()} == {"loss": 2.0, "count": 1.5}
    assert strategy.all_reduce(outputs, reduce_op="sum") is outputs


def test_weights_have_the_names_of_the_module(strategy):
    module = Net()
    wrapped = nn.DataParallel(module)

    state = strategy.get_module_state_dict(wrapped)

    assert list(state) == list(module.state_dict())
    strategy.load_module_state_dict(wrapped, state)
    batch = torch.ones(2)
    assert strategy.batch_to_device(batch) is batch


def test_devices_must_be_known():
    with pytest.raises(RuntimeError, match="parallel_devices"):
        _ = DataParallelStrategy().root_device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_module_trains_on_a_gpu_through_its_copies():
    from fulmen.strategies.route import call

    strategy = DataParallelStrategy(parallel_devices=[torch.device("cuda", 0)])
    strategy.setup_environment()
    module = Net()
    strategy.module_to_device(module)
    wrapped = strategy.setup_module(module)

    call(wrapped, module, "training_step", torch.ones(4, 4))["loss"].mean().backward()

    assert module.first.weight.grad is not None
