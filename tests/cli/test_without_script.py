"""`fulmen fit|validate|test|predict`: model and data by class path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.support import run_python

CONFIG = """
model: {class_path: ours.Net, init_args: {width: 3}}
data: ours.Data
trainer: {max_epochs: 1, accelerator: cpu, devices: 1, enable_progress_bar: false, enable_model_summary: false,
          log_every_n_steps: 1}
"""
MODULE = """
import torch
from torch.utils.data import DataLoader
from fulmen import LightningDataModule, LightningModule

class Net(LightningModule):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, width)
    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).square().mean())
    test_step = validation_step
    def predict_step(self, batch, batch_idx):
        return self.layer(batch)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.ones(8, 2), batch_size=4)
    val_dataloader = test_dataloader = predict_dataloader = train_dataloader
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "ours.py").write_text(MODULE)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(autouse=True)
def forgotten():
    yield
    sys.modules.pop("ours", None)


@pytest.mark.filterwarnings("ignore:The folder of `ModelCheckpoint` changed")
def test_fit_then_test_from_its_checkpoint(fulmen, project) -> None:
    fit = fulmen("fit", "--config", "config.yaml", "--model.width", "4")
    checkpoint = next((project / "lightning_logs" / "version_0" / "checkpoints").glob("*.ckpt"))
    test = fulmen("test", "--config", "config.yaml", "--model.width", "4", "--ckpt_path", checkpoint)

    assert (fit.code, test.code) == (0, 0), fit.err + test.err
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["width"] == 4
    assert (project / "lightning_logs" / "version_0" / "config.yaml").exists()
    assert "val_loss" in test.out


def test_without_a_logger_the_users_config_stays(fulmen, project) -> None:
    ended = fulmen(
        "fit", "--config", "config.yaml", "--trainer.logger", "false", "--trainer.enable_checkpointing=false"
    )

    assert ended.code == 0, ended.err
    assert (project / "config.yaml").read_text() == CONFIG


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_the_other_methods(fulmen, project, command) -> None:
    assert fulmen(command, "--config", "config.yaml", "--trainer.logger=false").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "ours.Nett", "--data", "ours.Data"], "has no attribute 'Nett'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--trainer.max_epochs", "1"], "model"),
    ],
    ids=["class", "file", "no model"],
)
def test_wrong_words_are_usage_errors(fulmen, project, words, message) -> None:
    ended = fulmen("fit", *words)

    assert ended.code == 2
    assert message in ended.err


def test_help_says_how_to_begin(fulmen, project) -> None:
    for words in (["fit"], ["fit", "--help"]):
        ended = fulmen(*words)

        assert ended.code == 0
        assert "fulmen fit --model my_package.Net" in " ".join(ended.out.split())


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_run_the_same_command(project) -> None:
    words = ["fit", "--config", "config.yaml", "--trainer.devices=2", "--trainer.strategy=ddp"]
    result = run_python("-m", "fulmen.cli", *words, cwd=project)

    assert result.returncode == 0, result.stderr
    assert list((project / "lightning_logs" / "version_0" / "checkpoints").glob("*-step=1.ckpt"))
