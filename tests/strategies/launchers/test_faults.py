# ruff: noqa: T201 - read by the test, or by who looks into its failure
from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("faulty_script.py")
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.distributed


@dataclass
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str
    seconds_after_fault: float
    notes: dict[str, float]


def run(
    how: str, who: int, folder: Path, *, send: int | None = None, to: str = "parent", torchrun: bool = False
) -> Ended:
    """Run the faulty script and wait until not one of its processes is left."""
    file = folder / "notes"
    file.touch()
    command = [sys.executable]
    if torchrun:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE")}
    env.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [*command, str(SCRIPT), how, str(who), str(file)], env=env, stdout=out, stderr=err, start_new_session=True
        )
        fault_at = None
        try:
            if send is not None:
                wait_for(lambda: file.read_text().count("ready") == 2, 100)
                fault_at = time.time()
                pids = {int(line.split()[0]): int(line.split()[1]) for line in file.read_text().splitlines()}
                if to == "group":
                    os.killpg(process.pid, send)
                else:
                    os.kill(process.pid if to == "parent" else pids[1], send)
            code = process.wait(100)
            wait_for(lambda: not group_lives(process.pid), 20)
        finally:
            end = time.time()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    notes = {line.split()[2] + line.split()[0]: float(line.split()[3]) for line in file.read_text().splitlines()}
    fault_at = fault_at or min([moment for name, moment in notes.items() if name.startswith("fault")], default=end)
    ended = Ended(code, (folder / "out").read_text(), (folder / "err").read_text(), end - fault_at, notes)
    print(f"{how} {who}: {ended.seconds_after_fault:.2f} s, exit code {code}\n{ended.err[-1500:]}")
    return ended


def group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it did not come to this"
        time.sleep(0.02)


def last_line(text: str) -> str:
    """The last line, without the prefix that torch adds once there is a process group."""
    return re.sub(
        r"^\[rank\d\]: ", "", text.rstrip().removesuffix("\n[rank0]:").removesuffix("\n[rank1]:").rsplit("\n", 1)[-1]
    )


def test_run_without_fault_ends_with_zero_and_says_nothing(tmp_path):
    ended = run("fine", 0, tmp_path)

    assert (ended.code, ended.err) == (0, "")
    assert sorted(ended.out.splitlines()) == ["again 2", "again 2", "rank 0 done", "rank 1 done"]


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("how", "last"),
    [
        ("error", "ValueError: boom"),
        ("worker", "ValueError: boom in a worker"),
        ("error_others_compute", "ValueError: boom"),
        ("teardown", "ValueError: "),
        ("after", "ValueError: boom after the run"),
    ],
)
def test_error_on_one_rank_ends_all_with_its_traceback_last(tmp_path, how, last, who):
    ended = run(how, who, tmp_path)

    assert ended.code == 1
    assert ended.seconds_after_fault < 10
    assert last_line(ended.err).strip().startswith(last)
    assert "Traceback (most recent call last)" in ended.err


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", ["killed", "killed_others_compute", "killed_with_workers", "os_exit", "sys_exit"])
def test_death_of_one_rank_ends_all(tmp_path, how, who):
    ended = run(how, who, tmp_path)

    assert ended.code != 0
    assert ended.seconds_after_fault < 10
    assert f"rank {who}" in ended.err.lower() or how == "sys_exit"


@pytest.mark.parametrize("how", ["import_error", "before_group", "exit_before_group"])
def test_rank_that_never_comes_is_not_waited_for(tmp_path, how):
    ended = run(how, 1, tmp_path)

    assert ended.code == 1
    assert ended.seconds_after_fault < 10
    assert "Rank 1" in ended.err


def test_children_end_when_the_first_process_is_killed_while_they_import(tmp_path):
    ended = run("parent_killed_at_import", 1, tmp_path)

    assert ended.code == -signal.SIGKILL
    assert ended.seconds_after_fault < 10


def test_interrupt_of_the_whole_group_is_no_fault_of_a_rank(tmp_path):
    ended = run("wait_for_signal", 0, tmp_path, send=signal.SIGINT, to="group")

    assert ended.code in (-signal.SIGINT, 130)
    assert ended.seconds_after_fault < 10
    assert ended.err.count("Traceback") == 1
    assert last_line(ended.err) == "KeyboardInterrupt"


@pytest.mark.parametrize("to", ["parent", "child"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signal_to_one_process_ends_all(tmp_path, signum, to):
    ended = run("wait_for_signal", 0, tmp_path, send=signum, to=to)

    assert ended.code != 0
    assert ended.seconds_after_fault < 10


def test_caught_error_does_not_end_the_first_process(tmp_path):
    ended = run("caught", 1, tmp_path)

    assert "caught RankFailedError" in ended.out
    assert ended.seconds_after_fault < 10


@pytest.mark.parametrize("how", ["error", "killed"])
def test_torchrun_names_the_rank_that_failed_first(tmp_path, how):
    ended = run(how, 1, tmp_path, torchrun=True)

    root_cause = ended.err[ended.err.index("Root Cause") :]
    assert ended.code == 1
    assert "rank      : 1" in root_cause
    assert ("ValueError: boom" if how == "error" else "Signal 9") in root_cause
    assert ended.seconds_after_fault < 10
