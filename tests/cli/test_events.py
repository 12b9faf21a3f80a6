"""`fulmen events`: the table in place of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fulmen import Trainer
from tests.support import run_python

SCRIPT = """
import sys
from fulmen import Callback, Trainer
from fulmen.demos import BoringDataModule, BoringModel

class Marks(Callback):
    def on_train_batch_end(self, *args): raise RuntimeError("a batch was trained")
    def on_test_start(self, *args): pass

class OfModule(Callback):
    def on_train_start(self, *args): pass

class Net(BoringModel):
    def configure_callbacks(self): return OfModule()
    def on_train_epoch_end(self): pass

def main():
    print("script says", sys.argv[1:])
    trainer = Trainer(callbacks=[Marks()], logger=False, enable_checkpointing=False, accelerator="cpu",
                      devices=2, strategy="ddp", enable_progress_bar=False, enable_model_summary=False)
    try:
        trainer.fit(Net(), datamodule=BoringDataModule())
        print(trainer.test(datamodule=BoringDataModule()))
    finally:
        print("cleaned up")

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_it_shows_who_acts_and_trains_nothing(fulmen, script) -> None:
    original = Trainer.fit
    ended = fulmen("events", "train.py", "--lr", "0.1")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]

    assert ended.code == 0
    assert "script says ['--lr', '0.1']" in lines
    assert "cleaned up" in lines
    assert lines.count("Trainer.fit") == 1
    assert "Trainer.test" not in lines
    assert "strategy DDPStrategy" in lines
    assert "callbacks Marks, OfModule" in lines
    assert "datamodule BoringDataModule" in lines
    assert "on_train_start OfModule" in lines
    assert "on_train_batch_end Marks" in lines
    assert "on_train_epoch_end Net (module)" in lines
    assert not any(line.startswith("on_test_start") for line in lines)
    assert max(map(len, ended.out.splitlines())) <= 80
    assert Trainer.fit is original


def test_it_goes_on_if_asked_to(fulmen, script) -> None:
    ended = fulmen("events", "--go-on", "--all", script)
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]

    assert ended.code == 0
    assert lines.index("Trainer.fit") < lines.index("Trainer.test") < lines.index("[]")
    assert any(line.startswith("on_test_start Marks") for line in lines)
    assert "on_before_zero_grad -" in lines


def test_json_is_alone_on_the_output(fulmen, script) -> None:
    ended = fulmen("events", "--json", script)
    found = json.loads(ended.out)

    assert "script says" in ended.err
    assert (found["method"], found["callbacks"]) == ("fit", ["Marks", "OfModule"])
    assert found["events"]["on_train_batch_end"] == ["Marks"]
    assert found["events"]["on_fit_start"] == []


def test_a_module_is_run_as_python_does(fulmen, script) -> None:
    ended = fulmen("events", "-m", "train", "x")

    assert ended.code == 0
    assert "script says ['x']" in ended.out
    assert "Trainer.fit" in ended.out


@pytest.mark.slow
def test_a_script_that_imports_lightning(tmp_path) -> None:
    text = SCRIPT.replace("from fulmen import", "from lightning.pytorch import")
    (tmp_path / "train.py").write_text(
        text.replace("fulmen.demos import", "lightning.pytorch.demos.boring_classes import")
    )
    result = run_python("-m", "fulmen.cli", "events", "-m", "fulmen.compat", "train.py", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert "callbacks   Marks, OfModule" in result.stdout


def test_a_script_without_a_trainer_is_told_so(fulmen, tmp_path) -> None:
    (tmp_path / "empty.py").write_text("print('nothing to do')")
    ended = fulmen("events", "empty.py")

    assert ended.code == 1
    assert "no Trainer of fulmen was asked to fit" in ended.err


def test_an_error_of_the_script_is_its_own(fulmen, tmp_path) -> None:
    (tmp_path / "broken.py").write_text("raise KeyError('mine')")

    with pytest.raises(KeyError, match="mine"):
        fulmen("events", "broken.py")


def test_a_search_of_the_tuner_shows_the_events_of_its_method(fulmen, tmp_path) -> None:
    (tmp_path / "tune.py").write_text(
        "from fulmen import Trainer\nfrom fulmen.tuner import Tuner\nfrom fulmen.demos import BoringModel\n"
        "Tuner(Trainer(logger=False, accelerator='cpu')).lr_find(BoringModel())\n"
    )
    ended = fulmen("events", "tune.py")

    assert ended.code == 0
    assert "Trainer.fit" in ended.out
