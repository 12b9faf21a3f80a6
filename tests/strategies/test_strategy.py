"""The verbs of a strategy, in one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen.accelerators import CPUAccelerator, CUDAAccelerator
from fulmen.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision, TorchCheckpointIO
from fulmen.strategies import SingleDeviceStrategy, Strategy


def with_gradients():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, -4.0]])
    return layer, torch.optim.SGD(layer.parameters(), lr=1.0)


def test_a_strategy_must_name_its_device():
    with pytest.raises(TypeError, match="root_device"):
        Strategy()  # type: ignore[abstract]  # that is the point


def test_one_device_is_enough_to_make_a_strategy():
    class Minimal(Strategy):
        @property
        def root_device(self):
            return torch.device("cpu")

    strategy = Minimal()

    assert (strategy.world_size, strategy.global_rank, strategy.local_rank, strategy.node_rank) == (1, 0, 0, 0)
    assert strategy.is_global_zero
    assert strategy.launcher is None
    assert strategy.parallel_devices == [torch.device("cpu")]


def test_parts_have_defaults():
    strategy = SingleDeviceStrategy()

    assert type(strategy.accelerator) is CPUAccelerator
    assert type(strategy.precision_plugin) is Precision
    assert type(strategy.checkpoint_io) is TorchCheckpointIO
    assert strategy.chosen_parts == frozenset()


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda:1", torch.device("cuda", 1)), (torch.device("cpu"), torch.device("cpu"))]
)
def test_device_may_be_a_name_or_an_object(device, expected):
    assert SingleDeviceStrategy(device).root_device == expected


def test_accelerator_follows_the_device():
    assert type(SingleDeviceStrategy("cuda:0").accelerator) is CUDAAccelerator


def test_complete_fills_in_only_what_did_not_come_with_the_strategy():
    strategy = SingleDeviceStrategy(precision_plugin=DoublePrecision())
    io = TorchCheckpointIO()

    for _ in range(2):
        strategy.complete(accelerator=CPUAccelerator(), precision_plugin=HalfPrecision(), checkpoint_io=io)

    assert strategy.precision_plugin.precision == "64-true"
    assert strategy.checkpoint_io is io
    assert strategy.chosen_parts == {"precision_plugin"}


def test_an_assigned_part_counts_as_chosen():
    strategy = SingleDeviceStrategy()

    strategy.precision_plugin = DoublePrecision()

    assert strategy.chosen_parts == {"precision_plugin"}


def test_talking_alone_gives_back_what_was_said():
    strategy = SingleDeviceStrategy()
    tensor = torch.ones(2)

    assert strategy.all_reduce(tensor) is tensor
    assert strategy.reduce(tensor, reduce_op="sum") is tensor
    assert strategy.all_gather(tensor) is tensor
    assert strategy.broadcast({"a": 1}) == {"a": 1}
    strategy.barrier("here")
    assert [strategy.reduce_boolean_decision(decision) for decision in (True, False)] == [True, False]


def test_new_modules_are_made_in_place_and_may_stay_empty():
    strategy = SingleDeviceStrategy("meta", precision_plugin=DoublePrecision())

    with strategy.module_init_context():
        layer = nn.Linear(2, 2)

    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.float64)


def test_empty_init_leaves_parameters_uninitialized_but_calls_everything_else():
    weight = torch.full((2, 2), 7.0)

    with SingleDeviceStrategy().tensor_init_context(empty_init=True):
        nn.init.uniform_(weight)
        other = torch.zeros(2)

    assert weight.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert other.tolist() == [0.0, 0.0]


def test_clipping_by_norm_returns_the_norm_before():
    layer, optimizer = with_gradients()

    total = SingleDeviceStrategy().clip_gradients_norm(layer, optimizer, 1.0)

    assert total.item() == pytest.approx(5.0)
    assert layer.weight.grad.norm().item() == pytest.approx(1.0)


def test_clipping_by_value_clamps():
    layer, optimizer = with_gradients()

    SingleDeviceStrategy().clip_gradients_value(layer, optimizer, 3.5)

    assert layer.weight.grad.tolist() == [[3.0, -3.5]]


@pytest.mark.parametrize("bound", [0, -1.0])
def test_a_bound_of_zero_or_less_does_not_clip(bound):
    layer, optimizer = with_gradients()
    strategy = SingleDeviceStrategy()

    strategy.clip_gradients_value(layer, optimizer, bound)
    total = strategy.clip_gradients_norm(layer, optimizer, bound)

    assert total.item() == 0
    assert layer.weight.grad.tolist() == [[3.0, -4.0]]


def test_clipping_unscales_first():
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    strategy = SingleDeviceStrategy(precision_plugin=precision)
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    precision.backward(precision.pre_backward(layer(torch.tensor([[3.0, 4.0]])).sum(), layer), layer, optimizer)

    total = strategy.clip_gradients_norm(layer, optimizer, 1.0)

    assert total.item() == pytest.approx(5.0)


def test_state_is_saved_and_restored_in_place(tmp_path):
    strategy = SingleDeviceStrategy()
    layer, optimizer = nn.Linear(2, 1), torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
    strategy.save_state(tmp_path / "a", {"model": layer, "optimizer": optimizer, "step": 3, "extra": "x"})
    other = nn.Linear(2, 1)
    state = {"model": other, "step": 0}

    rest = strategy.load_state(tmp_path / "a", state)

    assert torch.equal(other.weight, layer.weight)
    assert state["step"] == 3
    assert rest.keys() == {"optimizer", "extra"}
    assert strategy.load_state(tmp_path / "a").keys() == {"model", "optimizer", "step", "extra"}


def test_filter_selects_entries_and_must_name_what_is_saved(tmp_path):
    strategy = SingleDeviceStrategy()
    keep_bias = {"model": lambda name, value: name == "bias"}

    strategy.save_state(tmp_path / "a", {"model": nn.Linear(2, 1)}, filter=keep_bias)

    assert list(strategy.load_state(tmp_path / "a")["model"]) == ["bias"]
    with pytest.raises(ValueError, match=r"entries for \['model'\]"):
        strategy.save_state(tmp_path / "b", {"other": 1}, filter=keep_bias)


def test_an_absent_entry_raises_unless_not_strict(tmp_path):
    strategy = SingleDeviceStrategy()
    strategy.save_state(tmp_path / "a", {"step": 3})

    with pytest.raises(KeyError, match="epoch"):
        strategy.load_state(tmp_path / "a", {"epoch": 0})

    state = {"epoch": 0, "step": 0}
    strategy.load_state(tmp_path / "a", state, strict=False)
    assert state == {"epoch": 0, "step": 3}
