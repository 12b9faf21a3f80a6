"""The table of where a step's time goes, in runs of the Trainer."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.profilers import StepProfiler
from tests.support import quiet

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # tiny data needs none
    pytest.mark.filterwarnings("ignore:.*there is no validation dataloader"),  # most tests only train
]


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.layer(batch[0])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    def on_before_zero_grad(self, optimizer: Any) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Sleepy(Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(0.02)


def loader() -> Any:
    return DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=2)


def test_rows_name_every_part_and_add_up_to_the_time_of_the_epochs(tmp_path):
    profiler = StepProfiler()
    callbacks = [Sleepy(), ModelCheckpoint(tmp_path / "saved")]
    logger = CSVLogger(tmp_path)
    trainer = Trainer(
        **quiet(tmp_path, profiler=profiler, callbacks=callbacks, logger=logger, log_every_n_steps=1, max_epochs=2,
                enable_checkpointing=True, num_sanity_val_steps=0)
    )  # fmt: skip
    began_s = time.perf_counter()
    trainer.fit(Model(), loader(), loader())
    elapsed_s = time.perf_counter() - began_s

    assert profiler.num_steps == 8
    assert list(profiler.seconds)[:8] == [
        "data wait", "transfer to the device", "forward", "backward", "optimizer step", "logging", "validation",
        "checkpoints",
    ]  # fmt: skip
    assert {"callback Sleepy", "callback ModelCheckpoint", "hook Model.on_before_zero_grad"} < profiler.seconds.keys()
    assert list(profiler.seconds)[-1] == "other"
    assert profiler.seconds["callback Sleepy"] >= 8 * 0.02
    assert profiler.total == pytest.approx(sum(profiler.seconds.values()))
    assert 8 * 0.02 < profiler.total < elapsed_s


def test_table_is_written_to_the_log_at_the_end(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        Trainer(**quiet(tmp_path, profiler="step", callbacks=Sleepy())).fit(Model(), loader())
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]

    assert "4 steps" in lines
    (total,) = (line.split() for line in lines if line.startswith("Total"))
    assert total[2] == "100.0"
    assert any(line.startswith("callback Sleepy") for line in lines)


@pytest.mark.parametrize("kind", ["manual", "closure"])
def test_optimizer_step_is_told_apart_from_what_it_calls(tmp_path, kind):
    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = closure() if closure is not None else None
            time.sleep(0.01)
            return super().step() if loss is None else loss

    class Other(Model):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = kind != "manual"

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if kind == "manual":
                self.manual_backward(loss)
                optimizer: Any = self.optimizers()
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return Slow(self.parameters(), 0.01)

    if kind == "closure":

        def optimizer_step(self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer.step(closure=optimizer_closure)

        Other.optimizer_step = optimizer_step  # type: ignore[assignment]
    profiler = StepProfiler()
    Trainer(**quiet(tmp_path, profiler=profiler)).fit(Other(), loader())

    assert profiler.seconds["optimizer step"] >= 4 * 0.01
    assert {"forward", "backward"} < profiler.seconds.keys()


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_an_evaluation_is_divided_too(tmp_path, method):
    class Evaluated(Model):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.layer(batch[0])

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch[0])

    profiler = StepProfiler()
    getattr(Trainer(**quiet(tmp_path, profiler=profiler)), method)(Evaluated(), loader())

    assert profiler.num_steps == 4
    assert {"data wait", "forward"} <= profiler.seconds.keys()


def test_own_actions_have_rows_and_a_wrong_stop_is_an_error():
    profiler = StepProfiler()
    profiler.setup("fit")
    profiler.start("run_training_epoch")
    with profiler.profile("augment"):
        time.sleep(0.005)
    with pytest.raises(ValueError, match="'augment' cannot be stopped"):
        profiler.stop("augment")
    profiler.stop("run_training_epoch")

    assert profiler.seconds["augment"] >= 0.005
    assert profiler.summary() == ""  # no step


def test_an_error_in_a_step_leaves_a_report(tmp_path):
    class Breaks(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise ValueError("boom")
            return super().training_step(batch, batch_idx)

    profiler = StepProfiler(tmp_path, "steps")
    with pytest.raises(ValueError, match="boom"):
        Trainer(**quiet(tmp_path, profiler=profiler)).fit(Breaks(), loader())

    assert "3 steps" in (tmp_path / "fit-steps.txt").read_text()


def test_wrong_interval_is_refused():
    with pytest.raises(ValueError, match="`StepProfiler\\(gpu_every_n_steps=0\\)`"):
        StepProfiler(gpu_every_n_steps=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_time_of_the_gpu_is_listed_without_waiting_for_it(tmp_path):
    class Large(Model):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Linear(4096, 4096)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.large(batch[0].repeat(1024, 1024)).square().mean()

    profiler = StepProfiler(gpu_every_n_steps=1)
    Trainer(**quiet(tmp_path, accelerator="gpu", profiler=profiler, max_epochs=5)).fit(Large(), loader())
    per_step = profiler.gpu_seconds_per_step

    assert per_step.keys() == {"transfer to the device", "forward", "backward", "optimizer step"}
    assert per_step["backward"] > per_step["optimizer step"] > 0
    assert "GPU ms per step" in profiler.summary()
