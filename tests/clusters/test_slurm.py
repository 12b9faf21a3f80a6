"""Jobs of a real Slurm on one machine, as `make test-slurm` starts it."""

from __future__ import annotations

import csv
import re
import time
from pathlib import Path

import pytest
import torch

from tests.clusters.jobs import TRAIN, Job, is_slurm_up, submit, wait_until
from tests.distributed_harness import run_script

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not is_slurm_up(), reason="no Slurm for tests is up; `make test-slurm` starts one"),
]

SCRIPT = Path(__file__).with_name("train.py")
TWO_TASKS = ("--nodes=1", "--ntasks-per-node=2")
# 64 steps, long enough for a signal to find them at work
LONG = "--epochs 4 --batch-size 8 --dropout 0.3"
NUM_STEPS = 64


def train_job(folder: Path, options: str, *directives: str) -> Job:
    return submit(folder, f"srun {TRAIN} {folder} {options}", *(directives or TWO_TASKS))


def losses(folder: Path) -> tuple[list[int], list[str]]:
    """Columns of the log: steps, and losses to the last digit."""
    with (folder / "log" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [int(row["step"]) for row in rows], [row["loss"] for row in rows]


def wait_for_restarts(job: Job, number: int) -> None:
    wait_until(lambda: job.facts()["Restarts"] == str(number), 30, waiting_for=lambda: f"restart {number} of:\n{job}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a long run without signals."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_script(SCRIPT, str(folder), *LONG.split(), nproc=2, torchrun=True)
    return folder


# ---- start


@pytest.mark.parametrize("face", ["", "--fabric"], ids=["trainer", "fabric"])
def test_tasks_on_one_and_two_nodes_train_as_one_process_with_all_their_batches(tmp_path, face):
    one_node = train_job(tmp_path / "one", f"--batch-size 8 {face}")
    two_nodes = train_job(
        tmp_path / "two", f"--batch-size 8 --devices 1 --num-nodes 2 {face}", "--nodes=2", "--ntasks-per-node=1"
    )
    options = [*face.split(), "--batch-size"]
    run_script(SCRIPT, str(tmp_path / "alone"), "--devices", "1", *options, "16")
    run_script(SCRIPT, str(tmp_path / "torchrun"), *options, "8", nproc=2, torchrun=True)
    states = one_node.wait_for_end(), two_nodes.wait_for_end()
    weights = {name: torch.load(tmp_path / name / "weights.pt") for name in ("one", "two", "alone", "torchrun")}

    assert states == ("COMPLETED", "COMPLETED"), f"{one_node}\n{two_nodes}"
    assert sorted(re.findall("rank . of .*", one_node.output)) == ["rank 0 of 2, 0 on 0", "rank 1 of 2, 1 on 0"]
    assert sorted(re.findall("rank . of .*", two_nodes.output)) == ["rank 0 of 2, 0 on 0", "rank 1 of 2, 0 on 1"]
    torch.testing.assert_close(weights["one"], weights["torchrun"], rtol=0, atol=0)
    torch.testing.assert_close(weights["two"], weights["torchrun"], rtol=0, atol=0)
    torch.testing.assert_close(weights["one"], weights["alone"], rtol=0, atol=1e-6)


def test_interactive_job_starts_its_processes_itself(tmp_path):
    command = f"{TRAIN} {tmp_path}"
    jobs = [submit(tmp_path / name, command, *TWO_TASKS, name=name) for name in ("interactive", "bash")]
    states = [job.wait_for_end() for job in jobs]

    assert states == ["COMPLETED"] * 2, "\n".join(map(str, jobs))
    for job in jobs:
        assert sorted(re.findall("rank . of .*", job.output)) == ["rank 0 of 2, 0 on 0", "rank 1 of 2, 1 on 0"]


@pytest.mark.parametrize(
    ("directives", "command", "advice"),
    [
        (TWO_TASKS, "srun {train} --devices 1", "Pass `devices=2`"),
        (TWO_TASKS, "srun {train} --devices 3", "Pass `devices=2`"),
        (("--ntasks=2",), "srun {train}", "--ntasks-per-node=2"),
        (TWO_TASKS, "{train}", "srun python"),
    ],
    ids=["too few devices", "too many devices", "tasks without place", "without srun"],
)
def test_settings_that_do_not_fit_the_job_are_refused_at_once(tmp_path, directives, command, advice):
    job = submit(tmp_path, command.format(train=f"{TRAIN} {tmp_path}"), *directives)
    state = job.wait_for_end(timeout=60)

    assert state == "FAILED"
    assert advice in job.output
    assert not (tmp_path / "weights.pt").exists()


# ---- requeue


@pytest.mark.parametrize("workers", [0, 1])
def test_requeued_job_continues_its_log_as_if_nothing_had_happened(tmp_path, uninterrupted, workers):
    job = train_job(tmp_path, f"{LONG} --pace 0.1 --workers {workers}")  # whom Slurm sends the signal, too
    job.wait_for_output("step 10 on")
    job.signal("USR1")
    state = job.wait_for_end(timeout=180)

    assert (state, job.facts()["Restarts"]) == ("COMPLETED", "1"), str(job)
    assert losses(tmp_path) == losses(uninterrupted)
    assert losses(tmp_path)[0] == list(range(NUM_STEPS))
    assert [path.name for path in tmp_path.glob("hpc_ckpt_*")] == ["hpc_ckpt_1.ckpt"]
    torch.testing.assert_close(
        torch.load(tmp_path / "weights.pt"), torch.load(uninterrupted / "weights.pt"), rtol=0, atol=0
    )


def test_job_may_be_requeued_twice(tmp_path, uninterrupted):
    job = train_job(tmp_path, f"{LONG} --pace 0.1 --pace-always")
    for attempt, step in enumerate(["step 5 on", "step 30 on"]):
        job.wait_for_output(step)
        job.signal("USR1")
        wait_for_restarts(job, attempt + 1)
    state = job.wait_for_end(timeout=180)

    assert (state, job.facts()["Restarts"]) == ("COMPLETED", "2"), str(job)
    assert losses(tmp_path) == losses(uninterrupted)
    assert sorted(path.name for path in tmp_path.glob("hpc_ckpt_*")) == ["hpc_ckpt_1.ckpt", "hpc_ckpt_2.ckpt"]


def test_signal_before_the_time_limit_requeues(tmp_path, uninterrupted):
    # Slurm sends it up to a minute before that: between 30 and 90 s after the start, of 128 s or more
    job = train_job(tmp_path, f"{LONG} --pace 2", *TWO_TASKS, "--time=2", "--signal=USR1@30")
    state = job.wait_for_end(timeout=180)

    assert (state, job.facts()["Restarts"]) == ("COMPLETED", "1"), str(job)
    assert losses(tmp_path) == losses(uninterrupted)


def test_task_of_an_array_requeues_itself_only(tmp_path):
    command = f"srun {TRAIN} {tmp_path}/$SLURM_ARRAY_TASK_ID {LONG} --pace 0.1"
    first = submit(tmp_path, command, *TWO_TASKS, "--array=1-2", task=1)
    second = Job(first.number.replace("_1", "_2"), tmp_path / "output-2.txt")
    for job in (first, second):
        job.wait_for_output("step 10 on")
    first.signal("USR1")
    states = first.wait_for_end(timeout=180), second.wait_for_end()

    assert states == ("COMPLETED", "COMPLETED"), f"{first}\n{second}"
    assert (first.facts()["Restarts"], second.facts()["Restarts"]) == ("1", "0")
    assert losses(tmp_path / "1") == losses(tmp_path / "2")


@pytest.mark.parametrize("options", ["", "--no-requeue"])
def test_handler_of_the_user_stays_and_nothing_is_requeued(tmp_path, options):
    job = train_job(tmp_path, f"--own-handler {options} --pace 0.1")
    job.wait_for_output("step 5 on")
    job.signal("USR1")
    state = job.wait_for_end()

    assert (state, job.facts()["Restarts"]) == ("COMPLETED", "0"), str(job)
    assert job.output.count("my own handler got SIGUSR1") == 2
    assert not list(tmp_path.glob("hpc_ckpt_*"))


# ---- faults


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "reason"), [("raise", "ValueError: no more of this on rank {}"), ("kill", "SIGKILL|Killed")]
)
def test_failing_task_ends_the_job(tmp_path, how, reason, rank):
    job = train_job(tmp_path, f"--pace 0.1 --fail {how} {rank}")
    job.wait_for_output("step 3 on")
    began = time.monotonic()
    state = job.wait_for_end(timeout=60)

    assert time.monotonic() - began < 12
    assert state == "FAILED"
    assert re.search(reason.format(rank), job.output), str(job)
