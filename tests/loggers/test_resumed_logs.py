"""A resumed run in the same folder: its log is that of a run that was never interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import Callback
from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.loggers import CSVLogger, JSONLogger, TensorBoardLogger
from tests.support import quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:The checkpoint folder", "ignore:.*holds the metrics of an earlier"
)


class Stops(Exception):
    pass


class Model(LightningModule):
    """Logs per step, per epoch and in validation; stops before a given step, as if the machine were taken away."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.stop_at = stop_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.stop_at:
            raise Stops
        loss = torch.nn.functional.dropout(self.layer(batch[0]), 0.2).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        if self.global_step > 4:
            self.log("late", float(batch_idx))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).square().mean())

    def on_train_epoch_end(self):
        self.log("at_end", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def loader(shuffle=True):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(12, 4, generator=generator)), batch_size=2, shuffle=shuffle)


def fit(folder, logger, stop_at=None, ckpt_path=None, **checkpoint):
    torch.manual_seed(1)
    saver = ModelCheckpoint(folder / "c", save_top_k=-1, **checkpoint)
    settings = {"max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "enable_checkpointing": True}
    trainer = Trainer(**quiet(folder, logger=logger, callbacks=[saver], **settings))
    trainer.fit(Model(stop_at), loader(), loader(shuffle=False), ckpt_path=ckpt_path)
    return trainer


STEPS = ("3", "6", "7", "12")  # inside an epoch, its last and the first of another
TRIGGERS = [
    pytest.param({"every_n_train_steps": 1}, id="step"),
    pytest.param({"every_n_epochs": 1}, id="epoch"),
    pytest.param({"every_n_epochs": 1, "save_on_train_epoch_end": False}, id="validation"),
]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_csv_of_a_resumed_run_equals_that_of_an_uninterrupted_one(tmp_path, trigger):
    fit(tmp_path / "whole", CSVLogger(tmp_path / "whole", version=0), **trigger)
    whole = (tmp_path / "whole/lightning_logs/version_0/metrics.csv").read_text()
    with pytest.raises(Stops):  # having logged more than the checkpoints know
        fit(tmp_path / "broken", CSVLogger(tmp_path / "broken", version=0), stop_at=14, **trigger)
    log = tmp_path / "broken/lightning_logs/version_0/metrics.csv"
    broken = log.read_text()
    saved = [path for path in (tmp_path / "broken/c").glob("*.ckpt") if path.stem.split("=")[-1] in STEPS]
    assert len(saved) >= 2

    for path in saved:
        log.write_text(broken)
        fit(tmp_path / "broken", CSVLogger(tmp_path / "broken", version=0), ckpt_path=path, **trigger)

        assert log.read_text() == whole, path.name


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_tensorboard_shows_each_point_of_a_resumed_run_once(tmp_path, trigger):
    def points(folder):
        events = EventAccumulator(str(folder / "lightning_logs/version_0")).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if tag != "hp_metric"]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(whole, TensorBoardLogger(whole, version=0), **trigger)
    with pytest.raises(Stops):
        fit(broken, TensorBoardLogger(broken, version=0), stop_at=11, **trigger)
    for path in (broken / "lightning_logs/version_0").glob("events*"):  # TensorBoard sorts by the second in the name
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))
    oldest = min((broken / "c").glob("*.ckpt"), key=os.path.getmtime)
    fit(broken, TensorBoardLogger(broken, version=0), ckpt_path=oldest, **trigger)

    assert points(broken) == points(whole)


def test_run_that_resumes_in_another_folder_continues_there_and_leaves_the_first_log_alone(tmp_path):
    trigger = {"every_n_train_steps": 4}
    fit(tmp_path / "whole", CSVLogger(tmp_path / "whole", version=0), **trigger)
    whole = (tmp_path / "whole/lightning_logs/version_0/metrics.csv").read_text().splitlines()
    with pytest.raises(Stops):
        fit(tmp_path / "a", CSVLogger(tmp_path / "a"), stop_at=9, **trigger)
    first = tmp_path / "a/lightning_logs/version_0/metrics.csv"
    before = first.read_text()
    fit(tmp_path / "a", CSVLogger(tmp_path / "a"), ckpt_path=tmp_path / "a/c/epoch=1-step=8.ckpt", **trigger)

    assert first.read_text() == before
    second = (tmp_path / "a/lightning_logs/version_1/metrics.csv").read_text().splitlines()
    assert second[1:] == whole[-len(second[1:]) :]  # from the row on that was due when the checkpoint was written
    assert len(second[1:]) == len(whole) - 1 - (7 + 2)


@pytest.mark.filterwarnings("ignore:.*has shuffling enabled")  # so that random numbers are drawn for it
@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_batch_end", "on_validation_epoch_end"])
def test_file_saved_inside_a_validation_loses_none_of_its_rows_and_hooks(tmp_path, hook):
    class Saves(Callback):
        def __init__(self):
            self.ends = 0

        def on_validation_end(self, trainer, pl_module):
            self.ends += 1

        def state_dict(self):
            return {"ends": self.ends}

        def load_state_dict(self, state):
            self.ends = state["ends"]

    def save(self, trainer, pl_module, *args):
        trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    setattr(Saves, hook, save)

    def run(folder, ckpt_path=None):
        torch.manual_seed(1)
        logger, callback = CSVLogger(folder, version=0), Saves()
        settings = {"max_epochs": 2, "log_every_n_steps": 1, "val_check_interval": 3, "callbacks": [callback]}
        trainer = Trainer(**quiet(folder, logger=logger, **settings))
        trainer.fit(Model(), loader(), loader(), ckpt_path=ckpt_path)
        weights = [each.tolist() for each in trainer.lightning_module.parameters()]
        return Path(logger.log_dir, "metrics.csv").read_text(), weights, callback.ends, trainer.history.rows()

    whole = run(tmp_path / "a")
    for step in (3, 6, 9):  # inside an epoch, and at the end of one
        assert run(tmp_path / "a", tmp_path / f"{step}.ckpt") == whole, step


def test_loggers_find_their_places_if_others_are_added_and_the_order_changes(tmp_path):
    def logs(folder):
        return [CSVLogger(folder, version=0), JSONLogger(folder, version=0)]  # one folder, other files

    def written(folder):
        there = tmp_path / folder / "lightning_logs/version_0"
        return [(there / name).read_text() for name in ("metrics.csv", "metrics.jsonl")]

    trigger = {"every_n_train_steps": 4}
    fit(tmp_path / "whole", logs(tmp_path / "whole"), **trigger)
    with pytest.raises(Stops):
        fit(tmp_path / "broken", logs(tmp_path / "broken"), stop_at=11, **trigger)
    others = [TensorBoardLogger(tmp_path / "broken", version=0), JSONLogger(tmp_path / "new", version=0)]
    loggers = [*others, *reversed(logs(tmp_path / "broken"))]
    fit(tmp_path / "broken", loggers, ckpt_path=tmp_path / "broken/c/epoch=1-step=8.ckpt", **trigger)

    assert written("broken") == written("whole")


def test_position_of_a_foreign_checkpoint_changes_no_other_log(tmp_path):
    mine, other = CSVLogger(tmp_path, version=0), CSVLogger(tmp_path, version=1)
    for logger in (mine, other):
        logger.log_metrics({"x": 1.0}, 0)
        logger.save()
    for position in ({"log_dir": other.log_dir, "rows": 0}, {"log_dir": f"{mine.log_dir}/../version_1", "rows": 0}, {}):
        mine.resume_at(position)
    mine.resume_at({"log_dir": mine.log_dir, "rows": -5})

    assert len(Path(mine.log_dir, "metrics.csv").read_text().splitlines()) == 2
    assert len(Path(other.log_dir, "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_rows_before_a_checkpoint_survive_a_kill(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import tests.loggers.test_resumed_logs as here

        class Killed(here.Model):
            def training_step(self, batch, batch_idx):
                if self.global_step == 10:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().training_step(batch, batch_idx)

        here.Model = Killed
        folder = Path(sys.argv[1])
        here.fit(folder, here.CSVLogger(folder, version=0), every_n_train_steps=4)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "b")], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == -9, done.stderr
    trigger = {"every_n_train_steps": 4}
    fit(tmp_path / "whole", CSVLogger(tmp_path / "whole", version=0), **trigger)
    fit(tmp_path / "b", CSVLogger(tmp_path / "b", version=0), ckpt_path=tmp_path / "b/c/epoch=1-step=8.ckpt", **trigger)

    written = [(tmp_path / name / "lightning_logs/version_0/metrics.csv").read_text() for name in ("b", "whole")]
    assert written[0] == written[1]


def test_an_attempt_of_which_no_checkpoint_is_left_is_set_aside(tmp_path):
    def logs():
        return [CSVLogger(tmp_path, version=0), TensorBoardLogger(tmp_path, name="board", version=0)]

    with pytest.raises(Stops):
        fit(tmp_path, logs(), stop_at=4, ckpt_path="auto", every_n_train_steps=100)
    file = tmp_path / "lightning_logs/version_0/metrics.csv"
    first = file.read_text()
    for path in (tmp_path / "board/version_0").glob("events*"):  # TensorBoard sorts by the second in the name
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))
    fit(tmp_path, logs(), ckpt_path="auto", every_n_train_steps=100)
    fit(tmp_path / "whole", CSVLogger(tmp_path / "whole", version=0), every_n_train_steps=100)
    events = EventAccumulator(str(tmp_path / "board/version_0")).Reload()

    assert file.read_text() == (tmp_path / "whole/lightning_logs/version_0/metrics.csv").read_text()
    assert Path(f"{file}.bak").read_text() == first
    assert [event.step for event in events.Scalars("loss_step")] == list(range(18))
