"""What a plan may say, and which modules it divides; the processes are only pretended, so nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from fulmen.strategies import ModelParallelStrategy
from fulmen.strategies.parallelize import STYLES, parallelize
from tests.strategies.language import PLAN, SEQUENCE_PLAN, Net


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("tensor_parallel",))
    dist.destroy_process_group()


def _placements(module: nn.Module) -> dict[str, Any]:
    return {
        name: parameter.placements[0] for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)
    }


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.odd = nn.Linear(4, 5)
        self.even = nn.Linear(5, 4)
        self.words = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.ModuleDict({"wq": nn.Linear(6, 6)})
        self.attention.num_heads = 3  # type: ignore[assignment]  # as models have it


# ---- a plan by itself


@pytest.mark.parametrize(
    ("plan", "error", "parts"),
    [
        (5, TypeError, ["`parallelize=5`", "a dict from names of modules to styles"]),
        ({}, ValueError, ["names no module", "configure_model"]),
        ({"up": 3}, TypeError, ["'up': 3", "`ParallelStyle`"]),
        ({3: "colwise"}, TypeError, ["3: 'colwise'"]),
        ({"up": "colwize"}, ValueError, ["'colwize'", "does not exist", *STYLES]),
    ],
)
def test_a_wrong_plan_is_refused_where_it_is_written(plan: Any, error: type[Exception], parts: list[str]) -> None:
    with pytest.raises(error) as caught:
        ModelParallelStrategy(parallelize=plan)

    assert all(part in str(caught.value) for part in parts)


# ---- a plan for a module


@pytest.mark.parametrize(
    ("plan", "error", "parts"),
    [
        ({"layers.*.up": "colwise"}, ValueError, ["'layers.*.up'", "fits no module", "'layers.*.mlp.up'"]),
        ({"layers.*.mlp.up": "colwise", "**.up": "colwise"}, ValueError, ["'layers.0.mlp.up' twice", "'**.up'"]),
        ({"layers.0.mlp": "colwise"}, TypeError, ["'layers.0.mlp'", "`Mlp`", "`nn.Linear`"]),
        ({"words": "rowwise"}, TypeError, ["'words'", "'vocabulary'"]),
        ({"head": "vocabulary"}, ValueError, ["tied", "'words.weight' (whole)", "'head.weight'"]),
        (
            {name: style for name, style in SEQUENCE_PLAN.items() if name != "**.norm"},
            ValueError,
            ["modules have parameters and no style: 'norm'"],
        ),
    ],
)
def test_a_plan_that_does_not_suit_the_module_is_refused(
    mesh: DeviceMesh, plan: Any, error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        parallelize(Net(), mesh, plan)

    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("plan", "parts"),
    [
        ({"odd": "colwise"}, ["'odd'", "`out_features=5`", "2 processes"]),
        ({"even": "rowwise"}, ["'even'", "`in_features=5`"]),
        ({"words": "vocabulary"}, ["`num_embeddings=7`", "add unused words"]),
        ({"qkv": "colwise"}, ["'qkv'", "several things at once", "ColwiseParallel()"]),
        ({"attention.wq": "colwise"}, ["`attention.num_heads=3`", "one head would be on two"]),
    ],
)
def test_what_cannot_be_divided_is_named(mesh: DeviceMesh, plan: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="`parallelize`") as caught:
        parallelize(Other(), mesh, plan)

    assert all(part in str(caught.value) for part in parts), caught.value


def test_divided_predictions_need_a_layer_that_predicts(mesh: DeviceMesh) -> None:
    plan = {name: style for name, style in PLAN.items() if name != "**.head"}

    with pytest.raises(ValueError, match=r"no `nn.Linear` has the style 'vocabulary'"):
        parallelize(Net(), mesh, plan, loss_parallel=True)


def test_a_star_stands_for_one_part_of_a_name_and_two_for_any(mesh: DeviceMesh) -> None:
    one, any_number = Net(), Net()

    parallelize(one, mesh, {"layers.*.mlp.u?": "colwise"})
    parallelize(any_number, mesh, {"**.up": "colwise"})

    assert set(_placements(one)) == {f"layers.{n}.mlp.up.{kind}" for n in (0, 1) for kind in ("weight", "bias")}
    assert _placements(any_number) == _placements(one)
    with pytest.raises(ValueError, match="fits no module"):
        parallelize(Net(), mesh, {"*.up": "colwise"})


def test_styles_divide_weights_as_they_say_and_tied_ones_stay_one(mesh: DeviceMesh) -> None:
    net = Net()

    parallelize(net, mesh, SEQUENCE_PLAN, loss_parallel=True)

    assert net.head.weight is net.words.weight
    placements = _placements(net)
    assert placements["words.weight"] == Shard(0)
    assert placements["layers.0.attn.wq.weight"] == placements["layers.0.mlp.up.bias"] == Shard(0)
    assert placements["layers.1.attn.wo.weight"] == Shard(1)
    assert (
        placements["layers.1.mlp.down.bias"] == placements["norm.weight"] == placements["places.weight"] == Replicate()
    )
    assert set(placements) == {name for name, _ in net.named_parameters()}


def test_styles_of_torch_and_functions_are_plans_too(mesh: DeviceMesh) -> None:
    by_object, by_function = Net(), Net()

    def divide(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        return parallelize(module, mesh, {"**.up": "colwise"})

    parallelize(by_object, mesh, {"**.up": ColwiseParallel()})
    parallelize(by_function, mesh, divide)

    assert _placements(by_object) == _placements(by_function)
    assert len(_placements(by_object)) == 4


def test_weights_on_the_meta_device_are_divided_without_memory(mesh: DeviceMesh) -> None:
    with torch.device("meta"):
        net = Net()

    parallelize(net, mesh, PLAN)

    assert all(parameter.is_meta for parameter in net.parameters())
