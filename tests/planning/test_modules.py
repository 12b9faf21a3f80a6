"""`Trainer.plan`: what modules do beside forward and backward."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from fulmen import LightningDataModule, LightningModule, Trainer
from fulmen.planning import Plan, PlanError
from fulmen.strategies.model_parallel import ModelParallelStrategy
from fulmen.utilities.exceptions import MisconfigurationException
from tests.planning.models import Alternating, Language

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def plan(module: Any, batch: Any = "4x16:int64", ranks: int = 1, datamodule: Any = None, **settings: Any) -> Plan:
    return Trainer(**{**QUIET, **settings}).plan(module, batch, devices=ranks, datamodule=datamodule)


# ---- parts of weights


class _Divided(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64))

    def configure_model(self) -> None:
        mesh = self.device_mesh["tensor_parallel"]  # type: ignore[index]  # there is one
        parallelize_module(self.layers, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layers(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rank_of_a_divided_layer_computes_and_holds_its_part_only(ranks: int) -> None:
    batch, num_weights = 8, 2 * 64 * 512
    found = plan(
        _Divided(), f"{batch}x64", ranks,
        strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=ranks),
    )  # fmt: skip

    # forward, gradients of weights and of inputs, of which the first layer's are not needed
    assert found.flops == 2 * batch * (3 * num_weights - num_weights // 2) // ranks
    # in the optimizer step: weights, gradients, two averages, and twice one layer for the work
    assert found.peak_bytes == pytest.approx(5 * 4 * num_weights / ranks, rel=0.05)


# ---- schedules that know their end


class _Scheduled(Language):
    seen: ClassVar[list[float]] = []  # of the class, as a plan works on a copy

    def __init__(self) -> None:
        super().__init__()
        self.seen.clear()

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        total = self.trainer.estimated_stepping_batches
        self.seen.append(total)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=int(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        data: Any = torch.zeros(43, 16, dtype=torch.int64)
        return DataLoader(data, batch_size=4, shuffle=True)


@pytest.mark.parametrize(
    ("settings", "data", "total"),
    [
        ({"max_steps": 100}, None, 100),
        ({"max_steps": 100, "accumulate_grad_batches": 2}, None, 100),
        ({"max_epochs": 2}, _Data, 2 * 6),  # of 43 samples, 22 on each of two ranks
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, _Data, 2 * 2),
        ({"max_epochs": 2, "limit_train_batches": 5}, _Data, 2 * 5),
        ({"max_epochs": 3, "limit_train_batches": 5}, None, 3 * 5),
        ({"max_steps": 7, "max_epochs": 2}, _Data, 7),
        ({"max_epochs": 2, "use_distributed_sampler": False}, _Data, 2 * 11),
    ],
)
def test_a_schedule_knows_its_end_as_in_the_run(settings: dict[str, Any], data: Any, total: int) -> None:
    module = _Scheduled()
    found = plan(module, ranks=2, strategy="ddp", datamodule=None if data is None else data(), **settings)

    assert module.seen == [total]
    assert not any("how many batches" in note for note in found.notes)


def test_an_end_that_nobody_knows_is_noted() -> None:
    module = _Scheduled()
    found = plan(module, max_epochs=3)

    assert module.seen == [3 * 1000]
    assert any("how many batches" in note for note in found.notes)


def test_data_that_are_not_here_are_noted() -> None:
    class Elsewhere(_Scheduled):
        def train_dataloader(self) -> Any:
            raise FileNotFoundError("/data/words.bin")

    found = plan(Elsewhere(), max_epochs=3)

    assert _Scheduled.seen == [3 * 1000]
    assert any("FileNotFoundError: /data/words.bin" in note for note in found.notes)


# ---- manual optimization


def test_manual_optimization_is_planned_with_all_its_steps() -> None:
    one, two = plan(Language()), plan(Alternating())

    # forward, and gradients of weights and inputs; the second pass adds a forward, and gradients of the head alone
    assert 3 * two.flops == 4 * one.flops
    assert two.memory["optimizer state"].at_most == one.memory["optimizer state"].at_most
    assert two.memory["gradients"].at_most == one.memory["gradients"].at_most
    assert any("Optimization is manual" in note for note in two.notes)


def test_manual_optimization_exchanges_gradients_in_each_backward_pass() -> None:
    once, twice = (plan(module, ranks=4, strategy="fsdp") for module in (Language(), Alternating()))

    def reductions(found: Plan) -> int:
        return sum(each.count for each in found.exchanges if each.kind == "reduce-scatter")

    assert reductions(twice) > reductions(once)


def test_the_peak_of_a_step_by_closure_is_in_the_optimizer_step() -> None:
    class ByClosure(_Divided):
        def configure_model(self) -> None: ...

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    assert plan(ByClosure(), "8x64").peak_phase == "optimizer step"


# ---- metrics


class _Measured(Language):
    def __init__(self, kind: str) -> None:
        super().__init__()
        from torchmetrics import MeanMetric, MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        self.kind = kind
        self.accuracy = MulticlassAccuracy(64)
        self.mean = MeanMetric()
        self.several = MetricCollection([MulticlassAccuracy(64), MulticlassF1Score(64)], prefix="train_")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        words = self(batch).flatten(0, 1)
        if self.kind == "objects":
            self.accuracy(words, batch.flatten())
            self.log("accuracy", self.accuracy, prog_bar=True)
            self.mean.update(words.mean())
            self.log("mean", self.mean, on_step=True, on_epoch=True)
            self.log_dict(self.several(words, batch.flatten()))
        else:
            self.log("count", torch.bincount(batch.flatten()).float().mean())
        return torch.nn.functional.cross_entropy(words, batch.flatten())


def test_metrics_are_left_out_with_a_note() -> None:
    plain, found = plan(Language()), plan(_Measured("objects"))

    assert found.flops == plain.flops
    (note,) = [note for note in found.notes if "Metrics" in note]
    assert "MeanMetric, MulticlassAccuracy, MulticlassF1Score" in note


def test_the_module_still_has_its_metrics_after_a_plan() -> None:
    module = _Measured("objects")
    plan(module)

    assert module.mean(torch.tensor(3.0)) == 3.0
    assert module.mean.compute() == 3.0


def test_an_operation_on_values_is_found_in_the_users_code() -> None:
    with pytest.raises(PlanError, match="needs the value of a tensor") as caught:
        plan(_Measured("function"))

    assert 'self.log("count", torch.bincount(' in str(caught.value)


def test_the_line_that_calls_a_library_is_named_before_the_line_in_the_library() -> None:
    from torchmetrics.functional.retrieval import retrieval_precision

    class Retrieves(Language):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            retrieval_precision(self(batch).flatten(), self(batch).flatten() > 0)
            return self(batch).mean()  # type: ignore[no-any-return]

    with pytest.raises(PlanError) as caught:
        plan(Retrieves())

    text = str(caught.value)
    assert text.index("retrieval_precision(self(batch)") < text.index("torchmetrics")


# ---- what is refused or left out


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of the compiler, as it is loaded
def test_compiled_parts_are_noted() -> None:
    module = Language()
    module.head = torch.compile(module.head)  # type: ignore[assignment]

    assert any("`torch.compile` is left out" in note for note in plan(module).notes)
    assert not any("`torch.compile`" in note for note in plan(Language()).notes)


def test_deepspeed_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text("raise AssertionError('a plan does not load it')")
    if "deepspeed" not in sys.modules:
        monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(MisconfigurationException, match="`DeepSpeedStrategy` cannot be planned"):
        plan(Language(), ranks=2, strategy="deepspeed_stage_2")


class _Late(Language):
    """Makes its layers on the meta device, as modules do that are too large for one."""

    def __init__(self) -> None:
        LightningModule.__init__(self)

    def configure_model(self) -> None:
        if not hasattr(self, "head"):
            with torch.device("meta"):
                Language.__init__(self)


def test_layers_made_on_the_meta_device_are_planned_like_others() -> None:
    late, early = (plan(kind(), ranks=2, strategy="fsdp") for kind in (_Late, Language))

    assert late.memory == early.memory
    assert late.exchanges == early.exchanges
