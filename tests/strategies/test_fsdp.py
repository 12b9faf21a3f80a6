from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import BackwardPrefetch, CPUOffload, MixedPrecision, MixedPrecisionPolicy, ShardingStrategy
from torch.distributed.fsdp.wrap import (
    CustomPolicy,
    ModuleWrapPolicy,
    always_wrap_policy,
    size_based_auto_wrap_policy,
    transformer_auto_wrap_policy,
)

from fulmen import Trainer
from fulmen.plugins.precision import FSDPPrecision
from fulmen.plugins.precision import MixedPrecision as Autocast
from fulmen.strategies import STRATEGY_REGISTRY, FSDPStrategy
from fulmen.strategies.fsdp_wrapping import choose_units, refuse_mixed_types
from fulmen.utilities.exceptions import MisconfigurationException
from tests.distributed_harness import run_all, run_ranks
from tests.strategies import fsdp_runs as runs

TIMEOUT = 600.0  # the machine may be busy; nothing here takes long by itself
pytestmark = pytest.mark.timeout(900)


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def results(each_rank: list[list[Any]]) -> list[list[Any]]:
    """By function, then by rank; errors are raised."""
    for rank, of_rank in enumerate(each_rank):
        for result in of_rank:
            assert not str(result).startswith("Traceback"), f"rank {rank}: {result}"
    return [list(of_function) for of_function in zip(*each_rank, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {"trainer": runs.by_trainer(folder, "auto"), "fabric": runs.by_fabric(folder, "auto")}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Everything that two ranks do, in one start of the processes; by name, then by rank."""
    folder = tmp_path_factory.mktemp("together")
    work = {
        "trainer": (runs.by_trainer, (folder, FSDPStrategy())),
        "fabric": (runs.by_fabric, (folder, FSDPStrategy(auto_wrap_policy={runs.Block}))),
        "adversarial": (runs.adversarial, (folder, FSDPStrategy())),
        "stages": (runs.in_all_stages, (folder, FSDPStrategy())),
        "full": (runs.checkpointed, (folder, "full")),
        "sharded": (runs.checkpointed, (folder, "sharded")),
    }
    done = results(run_ranks(run_all, 2, list(work.values()), timeout=TIMEOUT))
    return dict(zip(work, done, strict=True))


# ---- the same results as one device


def test_two_ranks_train_as_one_device_does(alone: dict[str, Any], together: dict[str, list[Any]]) -> None:
    one, ranks = alone["trainer"], together["trainer"]

    assert largest_difference(ranks[0]["weights"], one["weights"]) < 1e-5
    assert largest_difference(ranks[0]["weights"], ranks[1]["weights"]) == 0.0
    assert ranks[0]["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert ranks[0]["steps"] == one["steps"] == runs.STEPS
    assert ranks[0]["cut"] == 11  # all parameters
    assert ranks[0]["tied"]
    assert ranks[0]["names"] == one["names"]


def test_two_ranks_train_with_fabric_as_one_device_does(alone: dict[str, Any], together: dict[str, list[Any]]) -> None:
    one, ranks = alone["fabric"], together["fabric"]

    assert largest_difference(ranks[0]["weights"], one["weights"]) < 1e-5
    assert ranks[0]["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert ranks[0]["cut"] == 11
    assert ranks[0]["sizes"] == one["sizes"]  # the groups of the optimizer that was made before


def test_two_networks_that_are_stepped_by_hand_train_as_on_one_device(
    together: dict[str, list[Any]], tmp_path: Path
) -> None:
    one = runs.adversarial(tmp_path, "auto")

    assert largest_difference(together["adversarial"][0]["weights"], one["weights"]) < 1e-5
    assert together["adversarial"][0]["gap"] == pytest.approx(one["gap"], abs=1e-5)
    assert together["adversarial"][0]["cut"] == len(one["weights"])


def test_a_module_is_used_further_after_fit(together: dict[str, list[Any]], tmp_path: Path) -> None:
    one, ranks = runs.in_all_stages(tmp_path, "auto"), together["stages"]

    assert ranks[0]["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert ranks[0]["losses"][0] == ranks[0]["losses"][1] == ranks[0]["losses"][2]
    assert ranks[0]["predicted"] == ranks[1]["predicted"] == one["predicted"]
    assert not ranks[0]["whole_between"]
    assert largest_difference(ranks[0]["weights"], one["weights"]) < 1e-5
    assert ranks[0]["steps"] == one["steps"] == 8


# ---- checkpoints


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(kind: str, together: dict[str, list[Any]]) -> None:
    result = together[kind][0]

    assert largest_difference(result["resumed"], result["uninterrupted"]) == 0.0
    assert largest_difference(result["resumed"], result["at_save"]) > 0.0
    assert result["is_folder"] == (kind == "sharded")


def test_a_whole_checkpoint_is_an_ordinary_file(together: dict[str, list[Any]], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "together0" / "full.ckpt"

    checkpoint = torch.load(path, weights_only=True)

    saved = {name: each.numpy() for name, each in checkpoint["state_dict"].items()}
    assert largest_difference(saved, together["full"][0]["at_save"]) == 0.0
    assert sorted(checkpoint["optimizer_states"][0]["state"]) == list(range(11))
    assert all(type(each) is torch.Tensor for each in checkpoint["state_dict"].values())


# ---- other meshes, other ways


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("two")
    work: dict[str, Any] = {
        "zero2": (runs.by_trainer, (folder, FSDPStrategy(sharding_strategy="SHARD_GRAD_OP"))),
        "replicated": (runs.by_trainer, (folder, FSDPStrategy(sharding_strategy="NO_SHARD"))),
        "offloaded": (runs.by_trainer, (folder, "fsdp_cpu_offload")),
        "again": (runs.by_trainer, (folder, FSDPStrategy(activation_checkpointing_policy={runs.Block}))),
        "prefetched": (runs.by_trainer, (folder, FSDPStrategy(forward_prefetch=True, auto_wrap_policy={nn.Linear}))),
        "frozen": (runs.by_trainer, (folder, FSDPStrategy(), True)),
        "by value": (runs.by_fabric, (folder, FSDPStrategy(), "value")),
        "meta": (runs.from_meta, (folder, FSDPStrategy())),
        "bf16-mixed": (runs.mixed, (folder, "bf16-mixed")),
        "bf16-true": (runs.mixed, (folder, "bf16-true")),
        "16-mixed": (runs.mixed, (folder, None, FSDPPrecision("16-mixed"))),
        "64-true": (runs.mixed, (folder, "64-true")),
        "overflow": (runs.overflow, (folder,)),
        "loose": (runs.loose, (folder,)),
    }
    return dict(zip(work, results(run_ranks(run_all, 2, list(work.values()), timeout=TIMEOUT)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "replicated", "offloaded", "again", "prefetched"])
def test_each_way_to_shard_trains_as_one_device_does(
    name: str, alone: dict[str, Any], on_two: dict[str, list[Any]]
) -> None:
    assert largest_difference(on_two[name][0]["weights"], alone["trainer"]["weights"]) < 1e-5
    assert on_two[name][0]["names"] == alone["trainer"]["names"]


@pytest.mark.slow
def test_frozen_weights_stay_and_the_others_train(on_two: dict[str, list[Any]], tmp_path: Path) -> None:
    one = runs.by_trainer(tmp_path, "auto", True)

    assert largest_difference(on_two["frozen"][0]["weights"], one["weights"]) < 1e-5


@pytest.mark.slow
def test_gradients_are_clipped_by_value(on_two: dict[str, list[Any]], tmp_path: Path) -> None:
    one = runs.by_fabric(tmp_path, "auto", "value")

    assert largest_difference(on_two["by value"][0]["weights"], one["weights"]) < 1e-5


@pytest.mark.slow
def test_a_module_without_memory_gets_the_weights_of_one_device(on_two: dict[str, list[Any]]) -> None:
    runs.seeded()
    expected = runs.whole(runs.Tower())
    result = on_two["meta"][0]

    assert largest_difference(result["first"], expected) == 0.0
    assert result["tied"]


@pytest.mark.slow
def test_weights_that_nobody_fills_are_named_and_may_be_loaded(on_two: dict[str, list[Any]]) -> None:
    result = on_two["meta"][0]

    assert result["was_meta"]
    assert "['table'] have no values: `Unknown` has no method `reset_parameters`" in result["refused"]
    assert result["output"] == [[280.0, 280.0]]  # 4 from the layer, 276 = 0 + 1 + ... + 23


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shard", "weight", "gradient"),
    [
        ("bf16-mixed", "float32", "bfloat16", "float32"),
        ("bf16-true", "bfloat16", "bfloat16", "bfloat16"),
        ("16-mixed", "float32", "float16", "float32"),
        ("64-true", "float64", "float64", "float64"),
    ],
)
def test_each_precision_gathers_and_keeps_its_types(
    name: str, shard: str, weight: str, gradient: str, on_two: dict[str, list[Any]]
) -> None:
    result = on_two[name][0]

    found = result["shard"], result["weight"], result["gradient"]
    assert found == (f"torch.{shard}", f"torch.{weight}", f"torch.{gradient}")
    assert result["learned"]
    assert largest_difference(result["weights"], on_two[name][1]["weights"]) == 0.0


@pytest.mark.slow
def test_all_ranks_leave_out_a_step_whose_gradients_overflow_on_one(on_two: dict[str, list[Any]]) -> None:
    for result in on_two["overflow"]:
        assert result == {"changed": [True, False, True], "scale": 4.0, "finite": True, "is_own": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [{}, {"sharding_strategy": "HYBRID_SHARD", "device_mesh": (2, 2)}],
    ids=["four shards", "two replicas of two shards"],
)
def test_four_ranks_train_as_one_device_does(arguments: dict[str, Any], alone: dict[str, Any], tmp_path: Path) -> None:
    work: list[Any] = [
        (runs.by_trainer, (tmp_path, FSDPStrategy(**arguments))),
        (runs.by_fabric, (tmp_path, FSDPStrategy(**arguments))),
    ]

    by_trainer, by_fabric = results(run_ranks(run_all, 4, work, timeout=TIMEOUT))

    assert largest_difference(by_trainer[0]["weights"], alone["trainer"]["weights"]) < 1e-5
    assert largest_difference(by_fabric[0]["weights"], alone["fabric"]["weights"]) < 1e-5
    assert by_fabric[0]["norms"] == pytest.approx(alone["fabric"]["norms"], rel=1e-4)


@pytest.mark.slow
def test_compiled_modules_train_as_plain_ones_do(tmp_path: Path) -> None:
    runs.seeded()
    plain = runs.Tower()
    runs.trainer(tmp_path, "auto", gradient_clip_val=0.5).fit(plain, runs.loader(6))
    ways = ["blocks", "checkpointed", "whole"]

    for of_way in results(run_ranks(run_all, 2, [(runs.compiled, (tmp_path, way)) for way in ways], timeout=TIMEOUT)):
        assert largest_difference(of_way[0]["weights"], runs.whole(plain)) < 1e-5
        assert of_way[0]["names"] == sorted(plain.state_dict())


@pytest.mark.slow
def test_spawned_workers_bring_the_trained_weights_back(tmp_path: Path) -> None:
    result = runs.spawned(tmp_path, partial(FSDPStrategy, start_method="spawn"))
    runs.seeded()
    expected = runs.Tower()
    runs.trainer(tmp_path, "auto").fit(expected, runs.loader(4))

    assert largest_difference(result["weights"], runs.whole(expected)) < 1e-5
    assert largest_difference(result["weights"], result["before"]) > 1e-3
    assert result["steps"] == 4


@pytest.mark.slow
def test_a_rank_holds_its_share_and_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back at once, else it counts as held

    for result in run_ranks(runs.peak, 2, tmp_path, timeout=TIMEOUT):
        weights = result["weights"]
        share = 4 * weights / 2  # weights, gradients, and two averages of Adam
        block = weights / 8

        # gathered: one block, the next one beforehand, and its gradient whole; buffers of the collectives likewise
        assert result["grown"] < share + 4 * block


# ---- units


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 8)
        self.blocks = nn.ModuleList(runs.Block() for _ in range(2))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, ["blocks.0", "blocks.1"]),
        ({nn.Linear}, ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head"]),
        (ModuleWrapPolicy({runs.Block}), ["blocks.0", "blocks.1"]),
        (CustomPolicy(lambda layer: isinstance(layer, nn.Embedding)), ["embed"]),
        (partial(transformer_auto_wrap_policy, transformer_layer_cls={runs.Block}), ["blocks.0", "blocks.1"]),
        (partial(size_based_auto_wrap_policy, min_num_params=250), ["blocks.0", "blocks.1"]),
    ],
    ids=["repeated blocks", "classes", "ModuleWrapPolicy", "CustomPolicy", "transformer", "size"],
)
def test_policies_of_torch_choose_the_units(policy: Any, expected: list[str]) -> None:
    module = Stack()
    names = {layer: name for name, layer in module.named_modules()}

    units = choose_units(module, policy, ignored=set())

    assert sorted(names[unit] for unit in units) == sorted(expected)


def test_a_policy_that_wraps_everything_leaves_containers_out() -> None:
    module = Stack()
    names = {layer: name for name, layer in module.named_modules()}

    units = choose_units(module, always_wrap_policy, ignored=set())

    assert {names[unit] for unit in units} == set(names.values()) - {"", "blocks"}


def test_a_layer_that_shares_a_parameter_with_the_outside_is_no_unit() -> None:
    module = Stack()
    blocks: Any = module.blocks
    blocks[0].up.bias = blocks[1].up.bias

    assert choose_units(module, None, ignored=set()) == {}


def test_batch_normalization_is_gathered_in_32_bit() -> None:
    module = Stack()

    units = choose_units(module, None, ignored=set(), kept_in_32_bit=(nn.BatchNorm1d,))

    assert units[module.norm] == {"mp_policy": MixedPrecisionPolicy()}


def test_types_that_are_mixed_within_a_unit_are_refused() -> None:
    module = Stack()
    module.head.double()

    with pytest.raises(MisconfigurationException, match=r"`embed.weight` \(float32\).*`head.weight` \(float64\)"):
        refuse_mixed_types({"": module}, {}, set())
    refuse_mixed_types({"": module}, {module.head: {}}, set())


# ---- arguments


def test_the_registered_names_make_it() -> None:
    assert isinstance(STRATEGY_REGISTRY.get("fsdp"), FSDPStrategy)
    trainer = Trainer(accelerator="cpu", devices=2, strategy="fsdp_cpu_offload", logger=False, precision="bf16-mixed")

    assert type(trainer.strategy) is FSDPStrategy
    assert type(trainer.strategy.cpu_offload).__name__ == "CPUOffloadPolicy"
    assert isinstance(trainer.precision_plugin, FSDPPrecision)
    assert trainer.precision_plugin.precision == "bf16-mixed"
    assert trainer.strategy.mixed_precision_config.param_dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"use_orig_params": False}, ValueError, "no flat parameters"),
        ({"auto_wrap_policy": "Block"}, TypeError, r"auto_wrap_policy='Block'.*a set of their classes"),
        ({"activation_checkpointing_policy": [1]}, TypeError, r"activation_checkpointing_policy=\[1\]"),
        ({"param_init_fn": 3}, TypeError, r"param_init_fn=3.*fills its own parameters"),
        ({"reshard_after_forward": "x"}, TypeError, "the number of ranks"),
        ({"reshard_after_forward": 0}, TypeError, "the number of ranks"),
        ({"timeout": 5}, TypeError, r"FSDPStrategy\(timeout=5\).*timedelta"),
        ({"limit_all_gathers": False}, ValueError, "always limits"),
        ({"backward_prefetch": BackwardPrefetch.BACKWARD_POST}, ValueError, "always gathers the next unit"),
        ({"process_group": ("one", "two")}, ValueError, "Pass `device_mesh`"),
        ({"device_id": 0}, ValueError, "follows from `accelerator`"),
        ({"mesh": (2,)}, ValueError, "`device_mesh`"),
        ({"dp_mesh_dims": ("dp",)}, ValueError, "ModelParallelStrategy"),
        ({"foo": 1}, TypeError, "'foo'.*neither"),
        ({"sharding_strategy": "HALF"}, ValueError, "'HALF'.*FULL_SHARD"),
        ({"sharding_strategy": "HYBRID_SHARD"}, RuntimeError, "device_mesh=\\(replicas, shards\\)"),
        ({"sharding_strategy": "HYBRID_SHARD", "device_mesh": (4,)}, ValueError, "2 dimensions, and this one has 1"),
        ({"device_mesh": (2, 2)}, ValueError, "1 dimension, and this one has 2"),
        ({"device_mesh": "2x2"}, TypeError, "no arrangement"),
        ({"state_dict_type": "local"}, ValueError, "'local'"),
        ({"cpu_offload": "yes"}, TypeError, "'yes'"),
        ({"cpu_offload": True, "offload_policy": CPUOffload()}, ValueError, "say the same"),
        ({"mixed_precision": torch.float16}, TypeError, "MixedPrecisionPolicy"),
        ({"mixed_precision": MixedPrecision(keep_low_precision_grads=True)}, ValueError, "bf16-true"),
        ({"sharding_strategy": "SHARD_GRAD_OP", "reshard_after_forward": True}, ValueError, "says already"),
        ({"ignored_states": ["head"]}, TypeError, "'head'"),
        (
            {"activation_checkpointing": nn.Linear, "activation_checkpointing_policy": {nn.Linear}},
            ValueError,
            "second one only",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_is_refused_at_once(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        FSDPStrategy(**arguments)


def test_classes_may_be_in_a_list() -> None:
    assert FSDPStrategy(auto_wrap_policy=[nn.Linear])._auto_wrap_policy == {nn.Linear}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "reshards"),
    [("FULL_SHARD", True), ("shard_grad_op", False), (ShardingStrategy.NO_SHARD, False)],
)
def test_names_and_enum_members_are_taken(name: Any, reshards: bool) -> None:
    strategy = FSDPStrategy(
        sharding_strategy=name, use_orig_params=True, limit_all_gathers=True, sync_module_states=True
    )

    assert strategy._settings.reshard_after_forward == reshards


def test_precisions_of_fsdp1_are_translated() -> None:
    given = MixedPrecision(torch.float16, torch.float32, torch.float16, cast_root_forward_inputs=False)

    numbers = FSDPStrategy(mixed_precision=given)._settings.numbers

    assert numbers is not None
    assert numbers.unit == MixedPrecisionPolicy(torch.float16, torch.float32, cast_forward_inputs=False)
    assert numbers.root.cast_forward_inputs is False
    assert numbers.buffer_dtype is torch.float16


def test_a_scaler_that_knows_of_no_shards_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="each rank would decide alone"):
        Trainer(accelerator="cpu", devices=2, strategy="fsdp", plugins=Autocast("16-mixed", "cpu"), logger=False)


@pytest.mark.slow
def test_parameters_of_the_module_itself_are_refused_with_manual_optimization(on_two: dict[str, list[Any]]) -> None:
    assert "['temperature'] belong to the `Loose` itself" in on_two["loose"][0]
