"""One clock for the rows of all stages."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import LearningRateMonitor, ModelCheckpoint
from fulmen.loggers import CSVLogger, JSONLogger
from tests.support import quiet

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The checkpoint folder")


class Stops(Exception):
    pass


class Model(LightningModule):
    def __init__(self, stop_at=None, skips=False):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.stop_at, self.skips = stop_at, skips

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.skips and batch_idx == 2 else None

    def training_step(self, batch, batch_idx):
        if self.global_step == self.stop_at:
            raise Stops
        loss = torch.nn.functional.dropout(self.layer(batch[0]), 0.2).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).square().mean(), on_step=True, on_epoch=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def loader(shuffle=True):
    """Five batches of 3, 3, 3, 3 and 1 samples."""
    samples = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(samples), batch_size=3, shuffle=shuffle)


def fit(folder, x_axis, stop_at=None, ckpt_path=None, model=None, **settings):
    torch.manual_seed(1)
    logger = CSVLogger(folder, version=0)
    logger.x_axis = x_axis
    saver = ModelCheckpoint(folder / "c", save_top_k=-1, every_n_train_steps=1)
    settings = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **settings}
    trainer = Trainer(**quiet(folder, logger=logger, callbacks=[saver], enable_checkpointing=True, **settings))
    trainer.fit(model or Model(stop_at), loader(), loader(shuffle=False), ckpt_path=ckpt_path)
    return trainer


def steps_of(folder, name):
    with (folder / "lightning_logs/version_0/metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get(name)]


def test_numbers_are_lightnings_unless_a_clock_is_chosen(tmp_path):
    fit(tmp_path, None)

    assert steps_of(tmp_path, "loss_step") == list(range(10))
    assert steps_of(tmp_path, "loss_epoch") == [4, 9]
    assert steps_of(tmp_path, "val_loss_step") == list(range(10))


@pytest.mark.parametrize(
    ("x_axis", "window", "steps", "ends"),
    [
        ("step", 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [5, 10]),
        ("step", 2, [1, 2, 3, 4, 5, 6], [3, 6]),
        ("batch", 2, [2, 4, 5, 7, 9, 10], [5, 10]),
        ("sample", 1, [3, 6, 9, 12, 13, 16, 19, 22, 25, 26], [13, 26]),
        ("sample", 2, [6, 12, 13, 19, 25, 26], [13, 26]),
        ("epoch", 2, [0, 0, 0, 1, 1, 1], [0, 1]),
    ],
)
def test_rows_of_all_stages_stand_at_the_chosen_clock(tmp_path, x_axis, window, steps, ends):
    fit(tmp_path, x_axis, accumulate_grad_batches=window)

    assert steps_of(tmp_path, "loss_step") == steps
    assert steps_of(tmp_path, "loss_epoch") == ends
    assert steps_of(tmp_path, "val_loss_epoch") == ends
    assert steps_of(tmp_path, "val_loss_step") == [end for end in ends for _ in range(5)]


@pytest.mark.parametrize("x_axis", ["step", "batch", "sample", "epoch"])
def test_resumed_run_goes_on_with_the_same_numbers(tmp_path, x_axis):
    log = "lightning_logs/version_0/metrics.csv"
    fit(tmp_path / "whole", x_axis)
    with pytest.raises(Stops):
        fit(tmp_path / "broken", x_axis, stop_at=8)
    broken = (tmp_path / "broken" / log).read_text()
    for step in (3, 5):  # inside an epoch, and its last
        saved = next((tmp_path / "broken/c").glob(f"*step={step}.ckpt"))
        (tmp_path / "broken" / log).write_text(broken)
        fit(tmp_path / "broken", x_axis, ckpt_path=saved)

        assert (tmp_path / "broken" / log).read_text() == (tmp_path / "whole" / log).read_text(), step


def test_batches_that_are_skipped_count_no_samples(tmp_path):
    fit(tmp_path, "sample", model=Model(skips=True))

    assert steps_of(tmp_path, "loss_step") == [3, 6, 9, 12]


def test_each_logger_has_its_own_clock_and_callbacks_keep_to_it(tmp_path):
    first, second = CSVLogger(tmp_path / "a"), JSONLogger(tmp_path / "b", x_axis="sample")
    settings = {"log_every_n_steps": 1, "num_sanity_val_steps": 0, "callbacks": [LearningRateMonitor("step")]}
    Trainer(**quiet(tmp_path, logger=[first, second], **settings)).fit(Model(), loader(), loader(shuffle=False))

    assert steps_of(tmp_path / "a", "lr-SGD") == [0, 1, 2, 3, 4]
    lines = Path(second.log_dir, "metrics.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines if "lr-SGD" in line] == [f'{{"step": {n}' for n in (0, 3, 6, 9, 12)]


def test_value_called_step_wins(tmp_path):
    class Own(Model):
        def training_step(self, batch, batch_idx):
            self.log("step", 100.0 + batch_idx)
            return super().training_step(batch, batch_idx)

    fit(tmp_path, "sample", model=Own(), max_epochs=1)

    assert steps_of(tmp_path, "loss_step") == [100, 101, 102, 103, 104]


def test_samples_are_not_counted_unless_a_logger_asks(tmp_path):
    trainer = fit(tmp_path, "batch", max_epochs=1)

    assert trainer.fit_loop.progress.samples == 0
    assert "samples" not in trainer.fit_loop.state_dict()["epoch_loop.state_dict"]


def test_unknown_clock_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x_axis = 'steps'.*\('step', 'batch', 'sample', 'epoch'\)"):
        JSONLogger(tmp_path, x_axis="steps")  # type: ignore[arg-type]  # the point
