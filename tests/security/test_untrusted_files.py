"""What a hostile file can do: nothing. Each entry that reads a file gets one that would run code."""

from __future__ import annotations

import http.server
import io
import os
import pickle
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fulmen as L
from fulmen.compat.lazy_load import lazy_load
from fulmen.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml
from fulmen.demos import BoringModel
from fulmen.loggers import TensorBoardLogger
from fulmen.utilities import upgrade_checkpoint
from fulmen.utilities.migration import LAYOUT_VERSION, VERSION_KEY


class Net(BoringModel):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """Is there if code of a file ran."""
    return tmp_path / "code_ran"


@pytest.fixture
def hostile(tmp_path, mark):
    """A checkpoint that resumes well, but for an object more."""
    trainer = quiet_trainer(tmp_path)
    trainer.fit(Net())
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    checkpoint = torch.load(tmp_path / "good.ckpt", weights_only=True)
    checkpoint["callbacks"]["Trap"] = Trap(mark)
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    return tmp_path / "hostile.ckpt"


def quiet_trainer(folder: Path, **settings: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, max_steps=2, limit_val_batches=1, **{**quiet, **settings})


def by_fabric(path: Path, raw: bool) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1)
    module = torch.nn.Linear(2, 2)
    fabric.load_raw(path, module) if raw else fabric.load(path, {"model": module})


ENTRIES: dict[str, Any] = {
    "load_from_checkpoint": lambda path: Net.load_from_checkpoint(path),
    "open file": lambda path: Net.load_from_checkpoint(io.BytesIO(path.read_bytes())),
    "fit": lambda path: quiet_trainer(path.parent).fit(Net(), ckpt_path=path),
    "validate": lambda path: quiet_trainer(path.parent).validate(Net(), ckpt_path=path),
    "predict": lambda path: quiet_trainer(path.parent).predict(Net(), ckpt_path=path),
    "fabric.load": partial(by_fabric, raw=False),
    "fabric.load_raw": partial(by_fabric, raw=True),
    "lazy_load": lazy_load,
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_no_entry_runs_code_of_a_checkpoint(entry, hostile, mark):
    with pytest.raises(pickle.UnpicklingError, match="weights_only=False"):
        entry(hostile)
    assert not mark.exists()


def test_the_trap_works_if_code_is_allowed_to_run(hostile, mark):
    Net.load_from_checkpoint(hostile, weights_only=False)

    assert mark.exists()


@pytest.fixture
def served(hostile):
    handler = partial(QuietHandler, directory=hostile.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{hostile.name}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    "entry",
    [Net.load_from_checkpoint, lambda address: quiet_trainer(Path()).fit(Net(), ckpt_path=address)],
    ids=["load_from_checkpoint", "fit"],
)
def test_an_address_is_trusted_no_more_than_a_file(entry, served, mark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(pickle.UnpicklingError, match="weights_only=False"):
        entry(served)
    assert not mark.exists()


def test_a_pickle_hidden_among_the_hyperparameters_is_left_alone(hostile, mark, tmp_path):
    checkpoint = torch.load(tmp_path / "good.ckpt", weights_only=True)
    hidden = io.BytesIO()
    torch.save(Trap(mark), hidden)
    checkpoint["fulmen"]["pickled_hparams"] = {"hyper_parameters": {"width": hidden.getvalue()}}
    torch.save(checkpoint, tmp_path / "hidden.ckpt")

    Net.load_from_checkpoint(tmp_path / "hidden.ckpt")
    quiet_trainer(tmp_path).fit(Net(), ckpt_path=tmp_path / "hidden.ckpt")

    assert not mark.exists()


@pytest.mark.parametrize("named", ["os.mkdir", "subprocess.run", "fulmen.demos.BoringModel"])
def test_a_file_does_not_choose_what_is_called(named, hostile, tmp_path):
    checkpoint = torch.load(tmp_path / "good.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["_instantiator"] = named
    torch.save(checkpoint, tmp_path / "chosen.ckpt")

    with pytest.raises(ValueError, match="not in the list of trusted instantiators"):
        Net.load_from_checkpoint(tmp_path / "chosen.ckpt")


def test_a_file_imports_nothing(hostile, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("class Model: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = torch.load(tmp_path / "good.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["_class_path"] = "evil_module.Model"
    checkpoint["callbacks"]["evil_module.Model"] = {"a": 1}
    checkpoint["hparams_type"] = "evil_module.Model"
    torch.save(checkpoint, tmp_path / "importing.ckpt")

    module = Net.load_from_checkpoint(tmp_path / "importing.ckpt")
    with pytest.warns(UserWarning, match="states of callbacks"):
        quiet_trainer(tmp_path).fit(Net(), ckpt_path=tmp_path / "importing.ckpt")

    assert type(module) is Net
    assert "evil_module" not in sys.modules


# ---- hyperparameters in files


def test_yaml_is_read_as_plain_data(tmp_path, mark):
    file = tmp_path / "hparams.yaml"
    file.write_text(f"width: !!python/object/apply:os.mkdir ['{mark}']\n")

    with pytest.raises(Exception, match="could not determine a constructor"):
        load_hparams_from_yaml(file)
    assert not mark.exists()


def test_csv_is_read_as_literals(tmp_path, mark):
    file = tmp_path / "hparams.csv"
    file.write_text(f"key,value\nwidth,\"__import__('os').mkdir('{mark}')\"\n")

    assert load_hparams_from_tags_csv(file)["width"].startswith("__import__")
    assert not mark.exists()


# ---- the command line


def old_file(path: Path, content: Any) -> Path:
    torch.save({VERSION_KEY: "1.9.0", "global_step": 3, "state_dict": {}, "loops": {}, "x": content}, path)
    return path


def test_an_upgrade_refuses_a_hostile_file_and_goes_on_with_the_others(tmp_path, mark, monkeypatch, capsys):
    old_file(tmp_path / "a.ckpt", Trap(mark))
    good = old_file(tmp_path / "b.ckpt", 1)
    monkeypatch.setattr(sys, "argv", ["upgrade_checkpoint", str(tmp_path)])

    with pytest.raises(SystemExit) as ending:
        upgrade_checkpoint.main()

    assert ending.value.code == 1
    assert "--no-weights-only" in capsys.readouterr().err
    assert not mark.exists()
    assert torch.load(good, weights_only=True)[VERSION_KEY] == LAYOUT_VERSION


def test_an_upgrade_reads_everything_if_it_is_told_to(tmp_path, mark, monkeypatch, capsys):
    old_file(tmp_path / "a.ckpt", Trap(mark))
    monkeypatch.setattr(sys, "argv", ["upgrade_checkpoint", "--no-weights-only", str(tmp_path / "a.ckpt")])

    upgrade_checkpoint.main()

    assert mark.exists()
    assert "upgraded" in capsys.readouterr().out


# ---- names of metrics


@pytest.mark.parametrize("name", ["../../out", "/out", "..\\out", "a/../../../out"])
def test_the_name_of_a_curve_cannot_leave_the_log_folder(name, tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "inside" / "logs"
    logger = TensorBoardLogger(folder, name="")

    logger.log_metrics({name: 0.5, "both": {name: 1.0, "b": 2.0}}, step=0)
    logger.finalize("success")

    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(folder)]
    assert outside == []
    assert not Path("/out").exists()
