"""Loggers in runs of the Trainer."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningDataModule, LightningModule, Trainer
from fulmen.loggers import CSVLogger, DummyLogger, TensorBoardLogger
from fulmen.loggers.logger import Logger

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")  # tiny data needs none


class Model(LightningModule):
    def __init__(self, lr=0.01, sizes=(4, 1)):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(*sizes)
        self.example_input_array = torch.ones(2, 4)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        loss = self(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


def loader():
    return DataLoader(TensorDataset(torch.randn(16, 4, generator=torch.Generator().manual_seed(0))), batch_size=2)


class Data(LightningDataModule):
    def __init__(self, lr=0.01, folder="data"):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader()


def trainer_with(logger, tmp_path, **kwargs):
    return Trainer(
        **{
            "logger": logger,
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 4,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            **kwargs,
        }
    )


def test_csv_file_holds_a_row_for_each_publication(tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = trainer_with(logger, tmp_path)
    trainer.fit(Model(), loader(), loader())

    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "loss", "step", "val_loss"]
    assert [(row["step"], row["epoch"]) for row in rows if row["loss"]] == [
        ("3", "0"),
        ("7", "0"),
        ("11", "1"),
        ("15", "1"),
    ]
    assert [row["step"] for row in rows if row["val_loss"]] == ["7", "15"]
    assert trainer.log_dir == logger.log_dir


def test_hyperparameters_of_module_and_datamodule_are_logged(tmp_path):
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tb")]
    trainer_with(loggers, tmp_path).fit(Model(lr=0.01), datamodule=Data(lr=0.01))

    for logger in loggers:
        assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {
            "lr": 0.01,
            "sizes": [4, 1],
            "folder": "data",
        }


def test_clashing_hyperparameters_stop_the_run(tmp_path):
    with pytest.raises(RuntimeError, match=r"\['lr'\].*different values"):
        trainer_with(CSVLogger(tmp_path), tmp_path).fit(Model(lr=0.01), datamodule=Data(lr=0.1))


def test_tensorboard_gets_metrics_and_graph(tmp_path):
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    trainer_with(logger, tmp_path).fit(Model(), loader(), loader())

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"loss", "val_loss", "epoch", "hp_metric"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [3, 7, 11, 15]
    assert any("layer" in node.name for node in events.Graph().node)


def test_rows_logged_before_an_error_are_kept(tmp_path):
    class Fails(Model):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 6:
                raise ArithmeticError

    logger = CSVLogger(tmp_path)
    with pytest.raises(ArithmeticError):
        trainer_with(logger, tmp_path, log_every_n_steps=1).fit(Fails(), loader(), loader())

    assert len((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()) == 1 + 6


def test_second_fit_goes_on_in_the_same_folder(tmp_path):
    logger = CSVLogger(tmp_path)
    for _ in range(2):
        trainer_with(logger, tmp_path, max_epochs=1).fit(Model(), loader(), loader())

    assert len((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()) == 1 + 2 * (2 + 1)
    assert logger.version == 0


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer = trainer_with(CSVLogger(tmp_path), tmp_path, fast_dev_run=True, log_every_n_steps=1)
    trainer.fit(Model(), loader(), loader())

    assert isinstance(trainer.logger, DummyLogger)
    assert list(tmp_path.iterdir()) == []


def test_logger_without_experiment_is_enough(tmp_path):
    class ListLogger(Logger):
        name = "list"
        version = 0

        def __init__(self):
            self.rows = []
            self.status = None

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, metrics))

        def log_hyperparams(self, params, *args, **kwargs):
            pass

        def finalize(self, status):
            self.status = status

    logger = ListLogger()
    trainer_with(logger, tmp_path, max_epochs=1).fit(Model(), loader(), loader())

    assert [step for step, _ in logger.rows] == [3, 7, 7]  # the last is the validation's
    assert logger.status == "success"
