from __future__ import annotations

from pathlib import Path

from tests.support import run_python

PROGRAM = """
import sys
import other
import lightning.pytorch as pl

if __name__ == "__main__":
    print(pl.Trainer.__module__, sys.argv[1:], other.VALUE)
"""


def _write_program(folder: Path) -> Path:
    (folder / "other.py").write_text("VALUE = 7\n")
    script = folder / "program.py"
    script.write_text(PROGRAM)
    return script


def test_script_runs_with_its_arguments_and_its_own_folder(tmp_path: Path) -> None:
    script = _write_program(tmp_path)
    result = run_python("-m", "fulmen.compat", str(script), "--lr", "0.1")

    assert result.stdout.strip() == "fulmen.trainer.trainer ['--lr', '0.1'] 7", result.stderr


def test_module_runs_with_its_arguments(tmp_path: Path) -> None:
    _write_program(tmp_path)
    result = run_python("-m", "fulmen.compat", "-m", "program", "x", cwd=tmp_path)

    assert result.stdout.strip() == "fulmen.trainer.trainer ['x'] 7", result.stderr


def test_exit_status_of_the_script_is_kept(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("raise SystemExit(5)")

    assert run_python("-m", "fulmen.compat", str(script)).returncode == 5


def test_help_and_wrong_arguments_show_the_usage() -> None:
    helped, empty = run_python("-m", "fulmen.compat", "--help"), run_python("-m", "fulmen.compat")

    assert (helped.returncode, empty.returncode) == (0, 2)
    assert helped.stdout == empty.stderr
    assert helped.stdout.startswith("usage: python -m fulmen.compat script.py")


def test_missing_file_is_named(tmp_path: Path) -> None:
    result = run_python("-m", "fulmen.compat", "nothing.py", cwd=tmp_path)

    assert result.returncode == 2
    assert "there is no file 'nothing.py'" in result.stderr


def test_lightning_program_trains(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import lightning as L\n"
        "from lightning.pytorch.demos.boring_classes import BoringModel\n"
        "trainer = L.Trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=1, logger=False,\n"
        "                    accelerator='cpu', enable_checkpointing=False, enable_progress_bar=False,\n"
        "                    enable_model_summary=False)\n"
        "trainer.fit(BoringModel())\n"
        "print(trainer.global_step)\n"
    )
    result = run_python("-m", "fulmen.compat", str(script), cwd=tmp_path)

    assert result.stdout.strip() == "3", result.stderr
