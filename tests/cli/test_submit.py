"""`fulmen submit`: the job file, what becomes of it, and what is refused; `tests/clusters` has a real Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters.jobs import TRAIN, Job, is_slurm_up


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("")
    return path


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which notes its arguments and answers as Slurm's does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "sbatch"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\necho "4711;cluster"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program


def test_the_job_file_asks_for_one_task_per_gpu_and_a_requeue(fulmen, script, tmp_path) -> None:
    ended = fulmen(
        "submit", "--slurm", "--nodes", 2, "--gpus", "a100:4", "--cpus", 8, "--time", "8h", "--partition", "gpu",
        "--account", "us", "--qos", "high", "--mem", "64G", "--sbatch", "--exclusive", "--env", "A=b c",
        "--setup", "module load cuda", "--python", "python3", "--dry-run", "train.py", "--lr", "0.1", "--nodes", "x y",
    )  # fmt: skip

    assert ended.code == 0
    assert ended.out.splitlines() == [
        "#!/bin/bash",
        "# Written by `fulmen submit`. Send it again with: sbatch FILE",
        "#SBATCH --job-name=train",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=a100:4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=64G",
        "#SBATCH --time=08:00:00",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=us",
        "#SBATCH --qos=high",
        f"#SBATCH --chdir={tmp_path}",
        "#SBATCH --output=slurm/%x-%j.out",
        "#SBATCH --signal=SIGUSR1@90",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --exclusive",
        "",
        "export PYTHONUNBUFFERED=1",
        "export PYTHONFAULTHANDLER=1",
        "export PL_TRAINER_DEVICES=4",
        "export PL_TRAINER_NUM_NODES=2",
        "export SRUN_CPUS_PER_TASK=8",
        "export A='b c'",
        "module load cuda",
        "srun python3 train.py --lr 0.1 --nodes 'x y'",
    ]
    assert list(tmp_path.iterdir()) == [script]


def test_without_gpus_tasks_compute_on_the_cpu(fulmen, script) -> None:
    text = fulmen("submit", "--tasks", 2, "--no-requeue", "--array", "0-3", "--dry-run", "-m", "pkg.train").out

    assert "--ntasks-per-node=2" in text
    assert "--gpus-per-node" not in text
    assert "PL_TRAINER_ACCELERATOR=cpu" in text
    assert "--signal" not in text
    assert "#SBATCH --no-requeue" in text
    assert "#SBATCH --array=0-3" in text
    assert "slurm/%x-%A_%a.out" in text
    assert f"srun {sys.executable} -m pkg.train" in text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("8:00:00", "08:00:00"),
        ("90", "01:30:00"),
        ("90m", "01:30:00"),
        ("10:30", "00:10:30"),
        ("36h", "1-12:00:00"),
        ("2d12h", "2-12:00:00"),
        ("2-12", "2-12:00:00"),
        ("1-02:03:04", "1-02:03:04"),
        ("1-02:03", "1-02:03:00"),
    ],
)
def test_time_limits(fulmen, script, text, written) -> None:
    assert f"#SBATCH --time={written}\n" in fulmen("submit", "--time", text, "--dry-run", "train.py").out


def test_it_writes_and_submits(fulmen, script, sbatch, tmp_path) -> None:
    ended = fulmen("submit", "train.py")

    assert ended.code == 0
    assert ended.out == ("wrote train.sbatch\nsubmitted job 4711; its state: squeue -j 4711; to end it: scancel 4711\n")
    assert (tmp_path / "called").read_text() == "--parsable train.sbatch\n"
    assert (tmp_path / "slurm").is_dir()  # without it the job could not write its output
    assert fulmen("submit", "train.py").code == 0  # its own file is replaced


def test_it_only_writes_if_asked_to(fulmen, script, sbatch, tmp_path) -> None:
    ended = fulmen("submit", "--no-submit", "--file", "jobs/a.sbatch", "train.py")

    assert ended.out == "wrote jobs/a.sbatch\n"
    assert not (tmp_path / "called").exists()
    assert subprocess.run(["bash", "-n", tmp_path / "jobs" / "a.sbatch"], check=False).returncode == 0


def test_a_file_of_somebody_else_stays(fulmen, script, sbatch, tmp_path) -> None:
    (tmp_path / "train.sbatch").write_text("#!/bin/bash\nmine\n")
    refused = fulmen("submit", "train.py")

    assert refused.code == 1
    assert "was not written by this command" in refused.err
    assert not (tmp_path / "called").exists()
    assert fulmen("submit", "--overwrite", "train.py").code == 0


def test_what_slurm_says_is_passed_on(fulmen, script, sbatch, monkeypatch, tmp_path) -> None:
    sbatch.write_text("#!/bin/sh\necho 'invalid partition specified: x' >&2\nexit 1\n")
    refused = fulmen("submit", "--partition", "x", "train.py")
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = fulmen("submit", "train.py")

    assert refused.code == absent.code == 1
    assert "did not take train.sbatch: invalid partition specified: x" in refused.err
    assert "there is no program `sbatch` here" in absent.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which script?"),
        (["nowhere.py"], "the script 'nowhere.py' does not exist in this folder"),
        (["--nodes", "0", "train.py"], "--nodes=0: it is 1 or more"),
        (["--gpus", "all", "train.py"], "--gpus=all: write a number"),
        (["--gpus", "2", "--tasks", "2", "train.py"], "exclude each other"),
        (["--time", "soon", "train.py"], "--time=soon: write it as"),
        (["--time", "2m", "train.py"], "leave no time to train"),
        (["--env", "A", "train.py"], "--env=A: write NAME=VALUE"),
        (["--sbatch", "--nodes=3", "train.py"], "this command has an option for it: --nodes"),
        (["--sbatch", "exclusive", "train.py"], "write an option of sbatch"),
        (["--name", "bash", "train.py"], "taken for a shell of a person"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_slurm_would_refuse_is_refused_before(fulmen, script, words, message) -> None:
    ended = fulmen("submit", "--dry-run", *words)

    assert ended.code == 2
    assert message in ended.err


@pytest.mark.slurm
@pytest.mark.timeout(300)
@pytest.mark.skipif(not is_slurm_up(), reason="no Slurm for tests is up; `make test-slurm` starts one")
def test_a_real_job_trains_and_is_requeued(fulmen, tmp_path) -> None:
    python, script = TRAIN.split()
    ended = fulmen(
        "submit", "--tasks", 2, "--time", "10m", "--python", python, "--output", "out.txt",
        "--env", "OMP_NUM_THREADS=1", script, tmp_path, "--epochs", 4, "--batch-size", 8, "--pace", "0.1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    job = Job(ended.out.partition("submitted job ")[2].partition(";")[0], tmp_path / "out.txt")
    job.wait_for_output("step 10 on")
    job.signal("USR1")
    state = job.wait_for_end(timeout=180)

    assert (state, job.facts()["Restarts"]) == ("COMPLETED", "1"), str(job)
    assert (tmp_path / "weights.pt").exists()
