"""What accumulates over an epoch: numbers, tensors and metric objects."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import CatMetric, MeanMetric, MetricCollection, SumMetric
from torchmetrics.classification import BinaryPrecision, BinaryRecall

from fulmen.callbacks import Checkpoint
from fulmen.core.callback import Callback
from fulmen.core.module import LightningModule
from fulmen.trainer.trainer import Trainer
from tests.support import quiet


class Net(LightningModule):
    """One weight; the subclasses log."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.record(batch)
        return torch.as_tensor(self.layer(batch).mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.record(batch)

    def record(self, batch: Tensor) -> None:
        """Log something of a batch."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def numbers(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32).view(-1, 1)


def loader(count: int = 10, batch_size: int = 4) -> DataLoader[Any]:
    return DataLoader(numbers(count), batch_size=batch_size)  # type: ignore[arg-type]  # a tensor can be indexed


# ---- reductions
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_epoch_values_equal_those_of_all_samples(tmp_path, sizes: list[int], data: st.DataObject) -> None:
    batches = [
        torch.tensor(data.draw(st.lists(st.floats(-100, 100, width=32), min_size=n, max_size=n))).view(-1, 1)
        for n in sizes
    ]

    class Logs(Net):
        def record(self, batch: Tensor) -> None:
            for reduction in ("mean", "sum", "min", "max"):
                value = getattr(batch, reduction)()
                self.log(reduction, value, on_step=False, on_epoch=True, reduce_fx=reduction)

    trainer = Trainer(**quiet(tmp_path))
    trainer.test(Logs(), DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    everything = torch.cat(batches)

    for reduction in ("mean", "sum", "min", "max"):
        expected = getattr(everything, reduction)()
        torch.testing.assert_close(trainer.callback_metrics[reduction], expected, rtol=1e-5, atol=1e-4)


def test_a_batch_of_size_zero_has_no_weight(tmp_path) -> None:
    class Logs(Net):
        def record(self, batch: Tensor) -> None:
            self.log("some", batch.mean(), batch_size=0 if batch[0] > 3 else len(batch))
            self.log("none", batch.mean(), batch_size=0)

    trainer = Trainer(**quiet(tmp_path))
    trainer.test(Logs(), loader(), verbose=False)

    assert trainer.callback_metrics["some"] == 1.5
    assert trainer.callback_metrics["none"].isnan()


def test_half_precision_means_are_kept_in_single_precision(tmp_path) -> None:
    class Logs(Net):
        def record(self, batch: Tensor) -> None:
            self.log("m", torch.tensor(2049.0 if batch[0] else 1.0, dtype=torch.bfloat16), batch_size=1)

    trainer = Trainer(**quiet(tmp_path))
    trainer.test(Logs(), loader(8), verbose=False)

    assert trainer.callback_metrics["m"].dtype == torch.float32
    assert trainer.callback_metrics["m"] == (2048 + 1) / 2  # 2049 is 2048 in bfloat16


# ---- tensors
def test_a_logged_tensor_does_not_keep_its_graph(tmp_path) -> None:
    seen: list[weakref.ref[Tensor]] = []

    class Logs(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = self.layer(batch).mean()
            self.log("loss", loss, on_step=True, on_epoch=True)
            seen.append(weakref.ref(loss))
            return torch.as_tensor(loss)

    class Checks(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            gc.collect()
            alive.extend(ref() is not None for ref in seen[:-1])  # the loop keeps the last for its NaN check

    alive: list[bool] = []
    trainer = Trainer(**quiet(tmp_path, callbacks=[Checks()]))
    trainer.fit(Logs(), loader())

    assert alive == [False, False]
    assert not trainer.callback_metrics["loss_epoch"].requires_grad


def test_enable_graph_keeps_it(tmp_path) -> None:
    requires_grad = []

    class Logs(Net):
        def record(self, batch: Tensor) -> None:
            self.log("kept", self.layer(batch).mean(), enable_graph=True)
            self.log("detached", self.layer(batch).mean())

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            metrics = self.trainer.callback_metrics
            requires_grad.append((metrics["kept"].requires_grad, metrics["detached"].requires_grad))

    Trainer(**quiet(tmp_path)).fit(Logs(), loader(4))

    assert requires_grad == [(True, False)]


def test_a_tensor_changed_in_place_later_is_logged_as_it_was(tmp_path) -> None:
    class Logs(Net):
        def record(self, batch: Tensor) -> None:
            value = batch.mean()
            self.log("m", value, on_epoch=True)
            value.fill_(-1.0)

    trainer = Trainer(**quiet(tmp_path))
    trainer.fit(Logs(), loader(4))

    assert trainer.callback_metrics["m_step"] == trainer.callback_metrics["m_epoch"] == 1.5


@pytest.mark.gpu
def test_values_on_a_gpu_wait_there_until_they_are_read(tmp_path) -> None:
    class Logs(Net):
        def record(self, batch: Tensor) -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                for dtype in (torch.float32, torch.float16, torch.float64):
                    self.log(str(dtype), batch.mean().to(dtype), on_step=True, on_epoch=True)
                self.log("max", batch.max(), on_epoch=True, reduce_fx="max")
            finally:
                torch.cuda.set_sync_debug_mode("default")

    trainer = Trainer(**quiet(tmp_path, accelerator="gpu"))
    trainer.fit(Logs(), loader())

    assert trainer.callback_metrics["torch.float16_epoch"] == 4.5
    assert trainer.callback_metrics["max_epoch"] == 9.0
    assert trainer.callback_metrics["max_epoch"].device.type == "cpu"  # the run is over


# ---- metric objects
class WithMetrics(Net):
    """Metric objects in all ways of use: logged each step, at the end, never; grouped; with a list as state."""

    def __init__(self) -> None:
        super().__init__()
        self.stepwise, self.at_end, self.lifetime, self.collected = MeanMetric(), SumMetric(), SumMetric(), CatMetric()
        self.scores = MetricCollection([BinaryPrecision(), BinaryRecall()])
        self.of_validation = SumMetric()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        for metric in (self.stepwise, self.at_end, self.lifetime, self.collected):
            metric.update(batch)
        self.scores.update(batch.remainder(1.7) / 1.7, (batch.remainder(3) == 0).int())
        self.log("stepwise", self.stepwise, on_step=False, on_epoch=True)
        self.log_dict(self.scores, on_step=False, on_epoch=True)
        self.log("number", batch.mean(), on_step=True, on_epoch=True)
        self.log("most", batch.max(), on_step=False, on_epoch=True, reduce_fx=torch.max)
        return torch.as_tensor(self.layer(batch).mean())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.of_validation.update(batch)
        self.log("of_validation", self.of_validation)

    def on_train_epoch_start(self) -> None:
        self.log("at_start", float(self.current_epoch) + 0.5)

    def on_train_epoch_end(self) -> None:
        self.log("at_end", self.at_end)
        self.log("collected", self.collected.compute().std())
        self.collected.reset()
        self.log("lifetime", self.lifetime.compute())


def test_metric_objects_begin_anew_after_sanity_check_epochs_and_runs(tmp_path) -> None:
    seen: list[tuple[float, float]] = []

    class Reads(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            metrics = trainer.callback_metrics
            seen.append((float(pl_module.stepwise.compute()), float(metrics["of_validation"])))

    trainer = Trainer(**quiet(tmp_path, max_epochs=2, callbacks=[Reads()], num_sanity_val_steps=1))
    module = WithMetrics()
    trainer.fit(module, loader(), loader(6))
    results = trainer.validate(module, loader(6), verbose=False)

    assert seen == [(4.5, 15.0), (4.5, 15.0)]
    assert results == [{"of_validation": 15.0}]
    assert module.stepwise.update_count == module.of_validation.update_count == 0
    assert module.lifetime.update_count == 6  # nobody logged it: it is the user's


def test_metric_objects_of_an_interrupted_run_do_not_leak_into_the_next(tmp_path) -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                raise KeyError("stop")

    module = WithMetrics()
    trainer = Trainer(**quiet(tmp_path, callbacks=[Breaks()]))
    with pytest.raises(KeyError, match="stop"):
        trainer.fit(module, loader(), loader(6))
    trainer.fit(module, loader(), loader(6))

    assert trainer.callback_metrics["stepwise"] == 4.5


# ---- in the middle of an epoch
def states_of_epochs(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class SavesEachBatch(Callback):
    """Keeps a checkpoint per optimizer step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def test_an_unfinished_epoch_goes_on_after_resuming_at_any_step(tmp_path) -> None:
    arguments = quiet(tmp_path, max_epochs=3, num_sanity_val_steps=0)
    whole = Trainer(**arguments, callbacks=[SavesEachBatch(tmp_path)])
    whole.fit(WithMetrics(), loader(), loader(6))
    steps = range(1, whole.global_step + 1)

    seen = []
    for step in steps:
        resumed = Trainer(**arguments)
        path = tmp_path / f"{step}.ckpt"
        resumed.fit(WithMetrics(), loader(), loader(6), ckpt_path=path, weights_only=True)
        seen.append(states_of_epochs(resumed))

    assert seen == [states_of_epochs(whole) for _ in steps]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_an_epoch_saved_in_any_hook_has_the_same_values_after_resuming(tmp_path, hook: str) -> None:
    class Saves(Checkpoint):
        """Saves once in the second epoch; as a `Checkpoint` after all other hooks of the epoch's end."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.save(trainer, "on_train_epoch_end")

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                self.save(trainer, "on_train_batch_end")

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.save(trainer, "on_validation_end")

        def save(self, trainer: Any, here: str) -> None:
            if here == hook and trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    class Rows(WithMetrics):
        def __init__(self) -> None:
            super().__init__()
            self.rows: dict[int, dict[str, float]] = {}

        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            if self.current_epoch:
                self.rows[self.current_epoch - 1] = states_of_epochs(self.trainer)

    arguments = quiet(tmp_path, max_epochs=4, num_sanity_val_steps=0)
    whole, resumed = Rows(), Rows()
    Trainer(**{**arguments, "enable_checkpointing": True}, callbacks=[Saves()]).fit(whole, loader(), loader(6))
    Trainer(**arguments).fit(resumed, loader(), loader(6), ckpt_path=tmp_path / "saved.ckpt", weights_only=True)

    assert {epoch: resumed.rows[epoch] for epoch in (1, 2)} == {epoch: whole.rows[epoch] for epoch in (1, 2)}


def test_a_name_that_is_not_logged_again_after_resuming_reaches_the_epoch(tmp_path) -> None:
    class Once(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 0:
                self.log("once", 7.0, on_step=False, on_epoch=True, prog_bar=True)
            return super().training_step(batch, batch_idx)

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    Trainer(**quiet(tmp_path, callbacks=[Saves()])).fit(Once(), loader())
    resumed = Trainer(**quiet(tmp_path))
    resumed.fit(Once(), loader(), ckpt_path=tmp_path / "saved.ckpt")

    assert resumed.progress_bar_metrics == {"once": 7.0}
    assert resumed.callback_metrics["once"] == 7.0
