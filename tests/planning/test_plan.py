"""`Trainer.plan`: one step on ranks that are not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.planning import Plan, PlanError
from fulmen.planning.advice import advice_for
from fulmen.planning.ledger import ROLES
from fulmen.planning.plan import Memory
from fulmen.planning.sizes import gib_text
from fulmen.strategies.ddp import DDPStrategy
from fulmen.strategies.fsdp import FSDPStrategy
from fulmen.strategies.model_parallel import ModelParallelStrategy
from fulmen.utilities.exceptions import MisconfigurationException
from tests.planning.models import Block, Language

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip
BATCH = "4x16:int64"


def plan(strategy: Any = "auto", ranks: int = 1, batch: Any = BATCH, module: Any = None, **settings: Any) -> Plan:
    memory = settings.pop("memory", None)
    with torch.device("meta"):
        module = Language() if module is None else module
    if strategy == "fsdp":
        strategy = FSDPStrategy(auto_wrap_policy={Block})
    return Trainer(**{**QUIET, "strategy": strategy, **settings}).plan(module, batch, devices=ranks, memory=memory)


def num_bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * 4 for parameter in module.parameters())


def test_one_device_holds_weights_gradients_and_two_averages_of_adam() -> None:
    found, size = plan(), num_bytes(Language())

    memory = {role: found.memory[role].at_most for role in ("weights", "gradients", "optimizer state")}
    assert memory["weights"] == memory["gradients"] == size
    assert 2 * size <= memory["optimizer state"] < 2.01 * size  # and the number of steps of each parameter
    assert found.exchanges == []


def test_sgd_with_momentum_holds_one_average() -> None:
    found = plan(module=Language(optimizer="SGD"))

    assert found.memory["optimizer state"].at_most == num_bytes(Language())


def test_ddp_sends_each_gradient_once() -> None:
    found, size = plan("ddp", 64), num_bytes(Language())

    (exchange,) = found.exchanges
    assert exchange.count == 1
    assert (exchange.kind, exchange.num_ranks, exchange.payload_bytes) == ("all-reduce", 64, size)
    assert exchange.sent_bytes == pytest.approx(2 * size * 63 / 64, abs=4)
    assert found.global_batch_size == 4 * 64


@pytest.mark.parametrize("ranks", [2, 16])
def test_shards_hold_their_part_of_weights_gradients_and_optimizer_state(ranks: int) -> None:
    whole, part = plan(), plan("fsdp", ranks)

    for role in ("weights", "gradients"):
        assert part.memory[role].at_most * ranks == whole.memory[role].at_most
    assert part.memory["optimizer state"].at_most * ranks == pytest.approx(
        whole.memory["optimizer state"].at_most, rel=0.02
    )
    assert part.mesh == {"shard": ranks}
    assert part.flops == whole.flops


def test_a_thousand_ranks_exchange_each_unit_in_forward_and_backward() -> None:
    found, size = plan("fsdp", 1024), num_bytes(Language())

    times = {exchange.kind: exchange for exchange in found.exchanges}
    # padded, as 1024 ranks share a dimension of 32
    assert times["all-gather"].payload_bytes >= 2 * size
    assert times["all-gather"].count == 2 * 4  # three blocks, and what is in none
    assert times["reduce-scatter"].count == 4
    assert {exchange.over for exchange in found.exchanges} == {"shard"}


def test_weights_that_stay_gathered_are_gathered_once() -> None:
    kept = plan(FSDPStrategy(auto_wrap_policy={Block}, sharding_strategy="SHARD_GRAD_OP"), 16)
    dropped = plan("fsdp", 16)

    gathers = [next(each for each in found.exchanges if each.kind == "all-gather") for found in (kept, dropped)]
    assert gathers[0].count < gathers[1].count
    assert kept.memory["communication"].at_most > dropped.memory["communication"].at_most


def test_hybrid_shards_reduce_over_replicas_too() -> None:
    found = plan(FSDPStrategy(auto_wrap_policy={Block}, sharding_strategy="HYBRID_SHARD", device_mesh=(8, 4)), 32)

    assert found.mesh == {"replicate": 8, "shard": 4}
    assert {(each.kind, each.over, each.num_ranks) for each in found.exchanges} == {
        ("all-gather", "shard", 4), ("reduce-scatter", "shard", 4), ("all-reduce", "replicate", 8),
    }  # fmt: skip


def test_tensor_parallel_layers_are_divided_among_peers_and_their_outputs_summed() -> None:
    styles = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}
    found = plan(
        ModelParallelStrategy(data_parallel_size=4, tensor_parallel_size=2, parallelize=styles), 8, precision="32-true"
    )

    assert found.mesh == {"data_parallel": 4, "tensor_parallel": 2}
    assert found.global_batch_size == 4 * 4
    size, divided = num_bytes(Language()), num_bytes(Language().layers)
    assert found.memory["weights"].at_most == pytest.approx((size - divided / 2) / 4, rel=0.05)
    sums = [each for each in found.exchanges if (each.kind, each.over) == ("all-reduce", "tensor_parallel")]
    assert sum(each.count for each in sums) == 2 * 3  # of each block, in forward and backward


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing() -> None:
    one, two = plan(), plan(batch="8x16:int64")
    less = plan(module=Language(checkpoints=True))

    assert two.memory["activations"].at_most == pytest.approx(2 * one.memory["activations"].at_most, rel=0.05)
    assert less.memory["activations"].at_most < 0.6 * one.memory["activations"].at_most
    assert less.flops > one.flops


def test_accumulation_multiplies_the_work_and_not_the_reduction() -> None:
    one, three = plan("fsdp", 8), plan("fsdp", 8, accumulate_grad_batches=3)

    assert three.flops == 3 * one.flops
    reductions = [next(e for e in found.exchanges if e.kind == "reduce-scatter").count for found in (one, three)]
    assert reductions[0] == reductions[1]
    assert three.memory["gradients"].at_most >= num_bytes(Language())  # whole ones, until the last batch


def test_half_precision_halves_the_weights() -> None:
    whole, half = plan(), plan(precision="bf16-true")
    same = plan(precision="bf16-mixed")

    assert half.memory["weights"].at_most * 2 == whole.memory["weights"].at_most
    assert same.memory["weights"].at_most == whole.memory["weights"].at_most


def test_what_does_not_fit_says_by_how_much_and_what_would_help() -> None:
    found = plan("ddp", 8, memory="100KiB")

    assert found.fits is False
    text = str(found)
    assert "DOES NOT FIT" in text
    assert "too much" in text
    for advice in ("--strategy fsdp", "activation checkpointing", "smaller batch"):
        assert advice in text
    assert plan("ddp", 8, memory="h100").fits is True


def test_ddp_sends_gradients_in_buckets_as_from_the_second_step_on() -> None:
    module = Language(width=256, depth=2)
    size = num_bytes(module)

    (small,) = plan(DDPStrategy(bucket_cap_mb=2), 4, module=module).exchanges
    (default,) = plan("ddp", 4, module=module).exchanges
    assert small.payload_bytes == default.payload_bytes == size
    assert small.count == 3  # of 4.1 MiB
    assert default.count == 2  # a first one of 1 MiB, and up to 25 MiB


def only(role: str, size: int) -> dict[str, Memory]:
    return {each: Memory(size if each == role else 2**10, size) for each in ROLES}


@pytest.mark.parametrize(
    ("role", "is_sharded", "phase", "advice"),
    [
        ("weights", False, "forward", ["shards:"]),
        ("weights", True, "forward", ["more ranks:"]),
        ("activations", True, "backward", ["activation checkpointing", "a smaller batch: 4 in place of 8"]),
        ("communication", True, "backward", ["smaller units:"]),
        ("temporaries", False, "optimizer step", ["an optimizer with"]),
        ("temporaries", False, "forward", ["a device with"]),
    ],
)
def test_advice_is_given_on_what_is_too_much_only(role: str, is_sharded: bool, phase: str, advice: list[str]) -> None:
    found = advice_for(only(role, 2**30), too_much=2**29, batch_size=8, num_ranks=4, is_sharded=is_sharded, phase=phase)

    assert len(found) == len(advice)
    assert all(text.startswith(begin) for text, begin in zip(found, advice, strict=True))
    assert not any(" 0 B" in text or "0.0" in text for text in found)


def test_a_few_bytes_are_shown_as_such() -> None:
    assert [gib_text(size) for size in (0, 4, 1023, 2048, 3 * 2**20, 5 * 2**30)] == [
        "0 B", "4 B", "1023 B", "2.0 KiB", "3.0 MiB", "5.00 GiB",
    ]  # fmt: skip
    assert "0.0 KiB" not in str(plan("fsdp", 2))


def test_planning_changes_neither_module_nor_process() -> None:
    module = Language()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = Trainer(**{**QUIET, "max_steps": 1})

    trainer.plan(module, BATCH, num_nodes=2, devices=4)

    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not dist.is_initialized()
    data: Any = torch.zeros(8, 16, dtype=torch.int64)
    trainer.fit(module, DataLoader(data, batch_size=4))
    assert trainer.global_step == 1


class _Reads(Language):
    def __init__(self, what: str) -> None:
        super().__init__(depth=1)
        self.what = what

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.what == "number":
            assert f"{loss:.1f} {loss.item()}" == "1.0 1.0"
        elif self.what == "mask":
            loss = loss + batch[batch > 3].sum()
        elif batch.max().item() > 3:
            loss = 2 * loss
        return loss


def test_reading_a_loss_is_noted_with_its_line() -> None:
    found = plan(module=_Reads("number"))

    (note,) = [note for note in found.notes if "1.0 is taken" in note]
    assert "test_plan.py" in note
    assert "loss.item()" in note


@pytest.mark.parametrize(("what", "line"), [("mask", "batch[batch > 3]"), ("maximum", "batch.max().item()")])
def test_a_line_that_needs_values_is_named(what: str, line: str) -> None:
    with pytest.raises(PlanError, match="needs the value of a tensor") as caught:
        plan(module=_Reads(what))

    assert line in str(caught.value)
    assert "test_plan.py" in str(caught.value)
    assert not dist.is_initialized()


class _Named(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.example_input_array = {"x": torch.ones(6, 8)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch["x"]).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_batches_come_from_names_or_from_the_example_of_the_module() -> None:
    assert plan(batch="x=5x8", module=_Named()).batch_size == 5
    assert plan(batch=None, module=_Named()).batch_size == 6
    with pytest.raises(MisconfigurationException, match="has no batch"):
        plan(batch=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranks": 0}, "devices=0"),
        ({"batch": "4xx"}, "is no tensor"),
        ({"memory": "much"}, "is no size"),
        ({"memory": "0"}, "is no memory"),
        ({"memory": -1}, "is no memory"),
        (
            {"strategy": FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(3, 3)), "ranks": 8},
            "arranges 9 ranks, but there are 8",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((MisconfigurationException, ValueError), match=message):
        plan(**arguments)
