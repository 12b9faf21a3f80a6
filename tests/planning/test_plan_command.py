"""`fulmen plan`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from fulmen.cli import main

MODULE = """
import torch
from torch import nn
from torch.utils.data import DataLoader
from fulmen import LightningDataModule, LightningModule

class Net(LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 1))
    def training_step(self, batch, batch_idx):
        loss = self.layers(batch).square().mean()
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

class Computes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]

class Fails(Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=-1)

class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers.append(nn.BatchNorm1d(1))

class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.ones(64, 4), batch_size=16)
"""
CONFIG = """
model: {class_path: planned.Net, init_args: {width: 16}}
data: planned.Data
trainer: {max_epochs: 1, accelerator: gpu, devices: 4, precision: 16-mixed, accumulate_grad_batches: 2}
ckpt_path: null
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "planned.py").write_text(MODULE)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["fulmen"])
    yield
    sys.modules.pop("planned", None)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *words])
    return int(caught.value.code or 0)


def test_a_file_for_fit_is_planned_for_other_machines(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(
        "--nodes", "4", "--gpus", "8", "--memory", "a100", "--strategy", "fsdp", "--json", "--config", "config.yaml"
    )

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (found["num_ranks"], found["strategy"], found["fits"]) == (32, "FSDPStrategy", True)
    assert (found["batch_size"], found["global_batch_size"]) == (16, 16 * 32 * 2)
    assert any("'16-mixed' is planned as 'bf16-mixed'" in note for note in found["notes"])
    assert found["num_parameters"] == 4 * 16 + 16 + 16 * 16 + 16 + 16 + 1


def test_what_does_not_fit_ends_with_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    code = run("--gpus", "2", "--memory", "1KiB", "--batch", "8x4", "--model", "planned.Net", "--model.width", "64")

    assert code == 1
    text = capsys.readouterr().out
    assert "Net on 2 ranks (1 x 2)" in text
    assert "DOES NOT FIT" in text


def test_a_module_that_computes_as_it_is_made_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--batch", "8x4", "--model", "planned.Computes") == 1
    assert "--real-init" in capsys.readouterr().err
    assert run("--batch", "8x4", "--model", "planned.Computes", "--real-init") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "0", "--model", "planned.Net"), "it is 1 or more"),
        (("--memory", "huge", "--model", "planned.Net"), "is no size"),
        (("--batch", "8 by 4", "--model", "planned.Net"), "is no tensor"),
        (("--memory", "0", "--model", "planned.Net"), "is no memory that a device can have"),
        (("--batch", "8x4", "--model", "planned.Nothing"), "planned.Nothing"),
        (("--batch", "8x4", "--model", "planned.Net", "--strategy", "magic"), "`strategy='magic'` is not known"),
        (("--batch", "8x4", "--model", "planned.Net", "--precision", "7-true"), "`precision='7-true'` is not known"),
        (("--batch", "8x4", "--model", "planned.Net", "--trainer.max_steps", "-5"), "`Trainer(max_steps=-5)`"),
        (("--model", "planned.Net"), "has no batch"),
    ],
)
def test_wrong_words_are_explained(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "deepspeed" else find(name))

    assert run("--batch", "8x4", "--model", "planned.Net", "--strategy", "deepspeed_stage_2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fulmen[deepspeed]'" in line


def test_an_error_in_the_users_code_shows_its_lines_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--batch", "8x5", "--model", "planned.Net") == 1
    wrong_width = capsys.readouterr().err
    assert run("--batch", "8x4", "--model", "planned.Fails") == 1
    in_optimizers = capsys.readouterr().err

    assert "loss = self.layers(batch).square().mean()" in wrong_width
    assert "The batch was `--batch 8x5`." in wrong_width
    assert "return torch.optim.AdamW(self.parameters(), lr=-1)" in in_optimizers
    assert "ValueError: Invalid learning rate: -1" in in_optimizers
    for text in (wrong_width, in_optimizers):
        assert "Traceback" not in text
        assert len(text.splitlines()) <= 5


def test_what_a_plan_leaves_out_of_the_configuration_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--batch", "8x4", "--model", "planned.Normed", "--strategy", "ddp", "--trainer.sync_batchnorm", "true")

    assert run(*words) == 0
    assert "without the exchange of `sync_batchnorm=True`" in capsys.readouterr().out
