"""Programs of Lightning, and a test suite, through the compatibility layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fulmen.utilities.migration import LAYOUT_VERSION, VERSION_KEY
from tests.support import run_python

MODULE = "lightning.pytorch.utilities.upgrade_checkpoint"


def _old_file(folder: Path) -> Path:
    file = folder / "old.ckpt"
    torch.save({VERSION_KEY: "1.9.0", "state_dict": {}, "global_step": 3, "loops": {}, "callbacks": {}}, file)
    return file


def test_upgrade_checkpoint_is_a_command(tmp_path: Path) -> None:
    file = _old_file(tmp_path)
    result = run_python("-m", "fulmen.compat", "upgrade_checkpoint", str(file))

    assert result.returncode == 0, result.stderr
    assert f"upgraded from 1.9.0 to {LAYOUT_VERSION}" in result.stdout
    assert torch.load(file, weights_only=True)[VERSION_KEY] == LAYOUT_VERSION


@pytest.mark.slow
def test_modules_of_lightning_that_are_programs_can_be_run(tmp_path: Path) -> None:
    file = _old_file(tmp_path)
    code = f"""
import contextlib, io, runpy, sys
import fulmen.compat
fulmen.compat.install()
def run(name, *arguments):
    sys.argv[1:] = arguments
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, end.code
    print(out.getvalue().splitlines()[0])
run("pytorch_lightning.utilities.upgrade_checkpoint", {str(file)!r})
run("lightning.pytorch.utilities.consolidate_checkpoint", "--help")
run("lightning.fabric.utilities.consolidate_checkpoint", "--help")
run("lightning.fabric.cli", "run", "--help")
"""
    result = run_python("-c", code)
    lines = result.stdout.splitlines()

    assert result.returncode == 0, result.stderr
    assert lines[0].endswith("old file kept as old.ckpt.bak")
    assert lines[1].startswith("usage: python -m lightning.pytorch.utilities.consolidate_checkpoint")
    assert lines[2].startswith("usage: python -m lightning.fabric.utilities.consolidate_checkpoint")
    assert lines[3].startswith("usage: fabric run")


def test_a_module_that_is_no_program_cannot_be_run() -> None:
    result = run_python("-m", "fulmen.compat", "-m", "lightning.pytorch.callbacks")

    assert result.returncode == 1
    assert "lightning.pytorch.callbacks.__main__" in result.stderr


SUITE = {
    "conftest.py": "import lightning.pytorch as pl\n",
    "package.py": """
from pytorch_lightning import LightningModule
class Net(LightningModule):
    pass
""",
    "test_package.py": """
import fulmen
from lightning.pytorch import LightningModule, Trainer
from package import Net

def test_classes_are_the_same_from_both_sides():
    assert isinstance(Net(), LightningModule)
    assert isinstance(Net(), fulmen.LightningModule)
    assert isinstance(fulmen.LightningModule(), LightningModule)
    assert issubclass(Net, fulmen.LightningModule)

def test_trainer_is_ours():
    assert Trainer.__module__ == "fulmen.trainer.trainer"
""",
}


def _run_suite(folder: Path, *options: str, **environment: str) -> str:
    for name, content in SUITE.items():
        (folder / name).write_text(content)
    result = run_python(
        "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), *options, str(folder), cwd=folder,
        **environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_an_unchanged_test_suite_runs_with_the_plugin(tmp_path: Path) -> None:
    output = _run_suite(tmp_path, "-p", "fulmen.compat.pytest_plugin")

    assert "2 passed" in output
    assert f"lightning {LAYOUT_VERSION}: answered by fulmen" in output


@pytest.mark.slow
def test_an_unchanged_test_suite_runs_by_an_environment_variable(tmp_path: Path) -> None:
    assert "2 passed" in _run_suite(tmp_path, PYTEST_PLUGINS="fulmen.compat.pytest_plugin")
