"""`trainer.history`: what is in it, after how much, and after a resume."""

import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import LearningRateMonitor, ModelCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.metrics.curve_names import curve_group
from fulmen.metrics.history import History
from tests.support import quiet

BATCHES = 6


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("hidden", float(batch_idx), logger=False)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).square().mean())

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.layer(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Stop(Exception):
    pass


class SaveAndStop(Callback):
    """Writes a checkpoint in one hook at a given call of it, and ends the run."""

    def __init__(self, hook, call, path):
        self.left, self.path = call, path
        setattr(self, hook, self._act)

    def _act(self, trainer, *args):
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)
            raise Stop


def data():
    return DataLoader(list(torch.randn(BATCHES, 2, generator=torch.Generator().manual_seed(1))))  # type: ignore[arg-type]  # a list is dataset enough


def model():
    torch.manual_seed(0)
    return Model()


def make_trainer(tmp_path, **changes):
    return Trainer(**quiet(tmp_path, **{"max_epochs": 2, "log_every_n_steps": 2, **changes}))


def test_history_has_the_rows_of_the_logger_and_what_it_does_not_get(tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(tmp_path, logger=logger)
    trainer.fit(model(), data(), data())
    trainer.test(model(), data(), verbose=False)

    rows = trainer.history.rows()
    logged = logger.experiment._rows_of_file()[0]
    assert [row["step"] for row in rows] == [int(row["step"]) for row in logged]
    assert [row["epoch"] for row in rows] == [int(row["epoch"]) for row in logged]
    for name in ("train_loss_step", "train_loss_epoch", "val_loss", "test_loss"):
        theirs = [float(row[name]) for row in logged if row[name]]
        assert [value for _, value in trainer.history[name]] == theirs
    assert [value for _, value in trainer.history["hidden"]] == [1.0, 3.0, 5.0] * 2
    assert {row["stage"] for row in rows} == {"train", "validate", "test"}


def test_history_needs_no_logger(tmp_path):
    trainer = make_trainer(tmp_path, logger=False)
    trainer.fit(model(), data(), data())

    assert trainer.history["train_loss_step"] == trainer.history["train_loss_step"]
    assert [step for step, _ in trainer.history["train_loss_step"]] == [1, 3, 5, 7, 9, 11]
    assert len(trainer.history["val_loss"]) == 2
    assert {"step", "epoch"}.isdisjoint(trainer.history.names)


def test_nothing_is_recorded_where_nothing_is_logged(tmp_path):
    class Silent(Model):
        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        def validation_step(self, batch, batch_idx):
            pass

    trainer = make_trainer(tmp_path)
    trainer.fit(Silent(), data(), data())

    assert len(trainer.history) == 0
    assert trainer.history.state_dict() == {}


def test_learning_rates_are_in_the_history(tmp_path):
    monitor = LearningRateMonitor(logging_interval="epoch")
    trainer = make_trainer(tmp_path, logger=CSVLogger(tmp_path), callbacks=[monitor])
    trainer.fit(model(), data(), data())

    assert [value for _, value in trainer.history["lr-SGD"]] == [0.05, 0.05]


@pytest.mark.parametrize("logs", [False, True], ids=["no logger", "csv"])
@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("on_train_batch_end", 2),
        ("on_train_batch_end", 9),
        ("on_train_epoch_end", 1),
        ("on_validation_end", 2),
    ],
)
def test_resumed_history_equals_that_of_an_uninterrupted_run(tmp_path, hook, call, logs):
    def trainer_with(*callbacks, part):
        logger = CSVLogger(tmp_path / part) if logs else False
        return make_trainer(tmp_path / part, callbacks=list(callbacks), logger=logger, num_sanity_val_steps=0)

    whole = trainer_with(part="whole")
    whole.fit(model(), data(), data())
    path = tmp_path / "middle.ckpt"
    broken = trainer_with(SaveAndStop(hook, call, path), part="broken")
    with pytest.raises(Stop):
        broken.fit(model(), data(), data())
    resumed = trainer_with(part="broken")
    resumed.fit(model(), data(), data(), ckpt_path=path)

    assert resumed.history.rows() == whole.history.rows()


def test_signal_in_a_validation_leaves_no_row_twice(tmp_path):
    class Terminate(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if trainer.current_epoch == 1 and batch_idx == 2:
                trainer.signals.received = 15

    class PerBatch(Model):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.layer(batch).square().mean(), on_step=True, on_epoch=True)

    settings = {"num_sanity_val_steps": 0, "enable_checkpointing": True}
    torch.manual_seed(0)
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.fit(PerBatch(), data(), data())
    torch.manual_seed(0)
    saving = ModelCheckpoint(tmp_path / "c")
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, **settings, callbacks=[Terminate(), saving]).fit(PerBatch(), data(), data())
    resumed = make_trainer(tmp_path, **settings, callbacks=[ModelCheckpoint(tmp_path / "c")])
    resumed.fit(PerBatch(), data(), data(), ckpt_path=tmp_path / "c/interrupted.ckpt")

    assert resumed.history.rows() == whole.history.rows()


def test_the_checkpoint_loads_without_unpickling_objects(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(model(), data(), data())
    trainer.save_checkpoint(tmp_path / "end.ckpt")

    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    again = History()
    again.load_state_dict(saved["fulmen"]["history"])
    assert again.rows() == trainer.history.rows()


def test_checkpoint_without_history_begins_an_empty_table(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(model(), data(), data())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    del saved["fulmen"]["history"]
    torch.save(saved, tmp_path / "end.ckpt")

    trainer.fit_loop.max_epochs = 2
    trainer.fit(trainer.lightning_module, data(), data(), ckpt_path=tmp_path / "end.ckpt")
    assert {row["epoch"] for row in trainer.history.rows()} == {1}


# ---- the table by itself


def table(rows=3, **settings):
    history = History(**settings)
    for step in range(rows):
        history.add({"loss": 1 / (step + 1)}, step, 0)
    return history


def test_dict_has_one_entry_a_row():
    history = History()
    history.add({"a": 1, "step": 9}, 0, 0)
    history.add({"b": torch.tensor(2.5), "vector": torch.zeros(3)}, 4, None, stage="validate")

    assert history.to_dict() == {
        "step": [0, 4], "epoch": [0, None], "stage": ["train", "validate"], "a": [1.0, None], "b": [None, 2.5],
    }  # fmt: skip


def test_pandas_table_has_types():
    pandas = pytest.importorskip("pandas")
    history = table()
    history.add({"loss": math.nan, "other": 2}, 3, None)

    frame = history.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.dtypes.astype(str).to_dict() == {
        "step": "int64", "epoch": "Int64", "stage": str(frame["stage"].dtype), "loss": "float64", "other": "float64",
    }  # fmt: skip
    assert frame["loss"].tolist()[:3] == [1.0, 0.5, 1 / 3]
    assert History().to_pandas().empty


def test_repr_shows_the_last_rows():
    lines = repr(table(20)).splitlines()

    assert lines[0] == "History: 20 rows, 1 names"
    assert lines[1].split() == ["step", "epoch", "stage", "loss"]
    assert lines[-1].split() == ["19", "0", "train", "0.05"]
    assert len(lines) == 9
    assert repr(History()) == "History: 0 rows"


def test_unknown_name_is_an_error_that_says_what_there_is():
    with pytest.raises(KeyError, match=r"no 'lost'.*It has \['loss'\]"):
        _ = table()["lost"]


def test_plot_puts_what_measures_the_same_into_one_panel(tmp_path):
    pytest.importorskip("matplotlib")
    history = History()
    for step in range(5):
        history.add({"train_loss": step, "train_acc": step}, step, 0)
    history.add({"val_loss": 1.0, "val_acc": 2.0}, 5, 0)

    figure = history.plot(path=tmp_path / "curves.png")
    panels = {axes.get_title(): [line.get_label() for line in axes.lines] for axes in figure.axes}
    assert panels == {"loss": ["train_loss", "val_loss"], "acc": ["train_acc", "val_acc"]}
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert figure._repr_png_().startswith(b"\x89PNG")  # which a notebook shows
    assert [line.get_label() for line in history.plot("val_acc", x="epoch").axes[0].lines] == ["val_acc"]


def test_plot_says_what_is_wrong():
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="no axis"):
        table().plot(x="time")
    with pytest.raises(ValueError, match="nothing to draw"):
        History().plot()
    with pytest.raises(KeyError, match="no 'lost'"):
        table().plot("lost")


@pytest.mark.parametrize("rows", [1, 8, 9, 1000])
def test_memory_is_bounded_and_rows_are_dropped_evenly(rows):
    history = table(rows, most_rows=8)
    steps = [step for step, _ in history["loss"]]

    assert len(history) <= 8
    assert len(history) > min(rows, 8) // 2 - 1
    assert steps == list(range(0, rows, steps[1] - steps[0] if rows > 1 else 1))


def test_rows_of_epochs_outlive_rows_of_steps():
    history = History(most_rows=16)
    for step in range(200):
        history.add({"loss": step}, step, step // 50)
        if step % 50 == 49:
            history.add({"val": step}, step, step // 50, per_step=False)

    assert [value for _, value in history["val"]] == [49, 99, 149, 199]
    assert len(history) <= 16


@pytest.mark.parametrize("cut", [3, 8, 20, 77])
def test_thinned_table_resumes_exactly(cut):
    whole = table(100, most_rows=16)
    part = table(cut, most_rows=16)
    position = part.position()
    part.add({"loss": 7.0}, 1000, 0)
    resumed = History(most_rows=16)
    resumed.load_state_dict(pickle.loads(pickle.dumps(part.state_dict(until=position))))
    for step in range(cut, 100):
        resumed.add({"loss": 1 / (step + 1)}, step, 0)

    assert resumed.rows() == whole.rows()
    assert resumed.position() == whole.position()


def test_paused_history_takes_nothing():
    history = table()
    with history.paused():
        history.add({"loss": 1.0}, 9)

    assert len(history) == 3


def test_bound_too_small_is_refused():
    with pytest.raises(ValueError, match="most_rows=1"):
        History(most_rows=1)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("train_loss", "loss"), ("val/loss", "loss"), ("val_loss_epoch", "loss"), ("loss_step", "loss"),
        ("val_loss/dataloader_idx_1", "loss"), ("loss/val", "loss"), ("lr-SGD", "lr-SGD"), ("train", "train"),
        ("test_acc_epoch/dataloader_idx_0", "acc"), ("trainable", "trainable"),
    ],
)  # fmt: skip
def test_curves_are_grouped_by_what_they_measure(name, group):
    assert curve_group(name) == group


@pytest.mark.slow
@pytest.mark.distributed
def test_history_comes_back_from_other_processes(tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(tmp_path, logger=logger, devices=2, strategy="ddp_spawn", log_every_n_steps=1)
    trainer.fit(model(), data(), data())

    text = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    assert len(trainer.history) == text.count("\n") - 1 > 0
    assert {row["stage"] for row in trainer.history.rows()} == {"train", "validate"}
