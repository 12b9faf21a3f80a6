"""Programs with a LightningCLI, as their own processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support import run_python

# prints what each process was given and ended with
PROGRAM = """
import os

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel


class Model(BoringModel):
    def __init__(self, width: int = 3):
        super().__init__()
        self.save_hyperparameters()


class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.set_defaults({"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 1})

    def after_fit(self):
        ranks = [os.environ.get("LOCAL_RANK", "0"), self.trainer.world_size, self.model.hparams.width]
        weights = sum(float(p.detach().sum()) for p in self.model.parameters())
        print("ended", *ranks, f"{weights:.6f}", flush=True)


if __name__ == "__main__":
    CLI(Model, BoringDataModule, seed_everything_default=1)
"""
QUIET = (
    "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.logger=false", "--trainer.enable_checkpointing=false",
)  # fmt: skip
HYDRA = Path(__file__).parents[3] / "examples" / "hydra_train.py"


@pytest.fixture
def program(tmp_path) -> Path:
    path: Path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return path


def ended(output: str) -> list[tuple[str, ...]]:
    """By rank; lines of two processes may run into each other."""
    return sorted(re.findall(r"ended (\d) (\d) (\d) (-?\d+\.\d{6})", output))


@pytest.mark.slow
@pytest.mark.distributed
def test_program_of_lightning_trains_by_its_command_line_on_two_processes_as_on_one(program, tmp_path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    arguments = ("-m", "fulmen.compat", str(program), "fit", "--model.width=4", *QUIET)
    one = run_python(*arguments, "--trainer.devices=1", "--trainer.limit_train_batches=4", cwd=tmp_path / "one")
    two = run_python(*arguments, "--trainer.devices=2", "--trainer.strategy=ddp", cwd=tmp_path / "two")

    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    ranks = ended(two.stdout)
    assert [rank[:3] for rank in ranks] == [("0", "2", "4"), ("1", "2", "4")], two.stdout
    assert ranks[0][3] == ranks[1][3]
    saved = yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())
    assert (saved["model"], saved["seed_everything"]) == ({"width": 4}, 1)
    again = run_python("-m", "fulmen.compat", str(program), "fit", "--config=one/config.yaml", cwd=tmp_path)
    assert ended(again.stdout) == ended(one.stdout), again.stderr


@pytest.mark.slow
def test_wrong_command_line_of_a_program_shows_the_program_and_no_traceback(program, tmp_path) -> None:
    result = run_python("-m", "fulmen.compat", str(program), "fit", "--model.width=wide", cwd=tmp_path)

    assert result.returncode == 2
    assert 'Parser key "model.width"' in result.stderr
    assert "usage: train.py [options] fit" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_missing_package_is_named_with_the_command_that_installs_it(tmp_path) -> None:
    code = (
        "import sys\nsys.modules['jsonargparse'] = None\nfrom fulmen.cli import OptimizerCallable\n"
        "from fulmen.cli import LightningCLI\n"
    )
    result = run_python("-c", code)

    assert result.stderr.splitlines()[-1].endswith(
        "`LightningCLI` needs the package `jsonargparse`, which is not installed. Install it: pip install 'fulmen[cli]'"
    )


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp"])
def test_hydra_program_trains_on_two_processes_with_one_configuration_and_folder(tmp_path, strategy) -> None:
    result = run_python(
        str(HYDRA), "trainer.max_steps=2", "model.out_dim=5", "trainer.devices=2", f"trainer.strategy={strategy}",
        cwd=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("out_dim=5") == 1
    assert "2 processes, 2 steps" in result.stdout
    assert len(list(tmp_path.glob("outputs/*/*"))) == 1
    assert len(list(tmp_path.glob("**/.hydra"))) == 1


@pytest.mark.slow
@pytest.mark.distributed
def test_hydra_sweep_with_ddp_stays_in_one_folder_with_one_for_each_job(tmp_path) -> None:
    result = run_python(
        str(HYDRA), "trainer.max_steps=2", "model.out_dim=5,6", "trainer.devices=2", "trainer.strategy=ddp",
        "-m", cwd=tmp_path,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    printed = [line for line in result.stdout.splitlines() if not line.startswith("[")]
    assert printed == ["out_dim=5", "2 processes, 2 steps", "out_dim=6", "2 processes, 2 steps"]
    (sweep,) = tmp_path.glob("multirun/*/*")
    assert sorted(path.name for path in sweep.iterdir()) == ["0", "1", "multirun.yaml"]
