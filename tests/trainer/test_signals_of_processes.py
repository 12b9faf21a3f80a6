"""Signals that are sent to whole programs: exit code, checkpoint, clean end within ten seconds, no orphans."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

from tests.distributed_harness import free_port, rank_environment

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

SCRIPT = Path(__file__).with_name("signalled.py")
METHODS = ["train", "validation", "sanity", "validate", "test", "predict"]
ALL_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
# how two processes come about: strategy, and what starts it
LAUNCHES = {"script": ("ddp", False), "spawn": ("ddp_spawn", False), "torchrun": ("ddp", True)}


@dataclass
class Ended:
    """How a program ended."""

    code: int
    seconds: float
    errors: str
    folder: Path

    def told(self, rank: int) -> list[str]:
        """What the callbacks of a rank were told."""
        return (self.folder / f"told_{rank}").read_text().splitlines()


def run(
    method: str, signum: int, folder: Path, *, ranks: int = 1, launch: str = "script",
    to: Literal["first", "group"] = "first", slow_teardown_s: float = 0.0,
) -> Ended:  # fmt: skip
    """Start the program, send a signal when every rank is at work, and wait until none of its processes is left."""
    strategy, torchrun = LAUNCHES[launch]
    command = [sys.executable, "-W", "ignore"]
    if torchrun:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]
    command += [str(SCRIPT), method, strategy if ranks > 1 else "auto", str(ranks), str(folder)]
    clean = {name: value for name, value in os.environ.items() if name not in rank_environment(0, 1, 0)}
    paths = os.pathsep.join([*([clean["PYTHONPATH"]] if "PYTHONPATH" in clean else []), str(SCRIPT.parents[2])])
    environment = {**clean, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "SLOW_TEARDOWN": str(slow_teardown_s)}
    with (
        (folder / "errors").open("wb") as errors,
        subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, start_new_session=True) as process,
    ):
        pids = [process.pid]
        try:
            works = [folder / f"working_{rank}" for rank in range(ranks)]
            wait_for(lambda: all(file.exists() and file.read_text().count("\n") > 2 for file in works), 100)
            pids += [int(file.read_text().split()[0]) for file in works]
            sent_at = time.monotonic()
            (os.killpg if to == "group" else os.kill)(process.pid, signum)
            code = process.wait(60)
            wait_for(lambda: not any(is_alive(pid) for pid in pids), 20)
            seconds = time.monotonic() - sent_at
            wait_for(lambda: not any(has_group(pid) for pid in pids), 20)  # workers that fetch data
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
    return Ended(code, seconds, (folder / "errors").read_text(), folder)


def wait_for(condition: object, seconds: float) -> None:
    """Wait until a function returns something true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def has_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def check(ended: Ended, method: str, signum: int, *, ranks: int = 1) -> None:
    error = "KeyboardInterrupt" if signum == signal.SIGINT else "SIGTERMException"
    steps = {ended.told(rank)[0].split()[-1] for rank in range(ranks)}

    assert ended.seconds < 10, ended.errors
    for rank in range(ranks):
        assert [line.rpartition(" at ")[0] for line in ended.told(rank)] == [f"on_exception {error}", "teardown"]
    assert len(steps) == 1
    assert set((ended.folder / "finalized").read_text().split()) == {"failed"}
    assert "Traceback" not in ended.errors
    path = ended.folder / "saved" / "interrupted.ckpt"
    assert path.exists() is (method in ("train", "validation"))
    if path.exists():
        assert str(torch.load(path, weights_only=True)["global_step"]) == steps.pop()


def test_sigterm_in_training_ends_the_program_with_143(tmp_path: Path) -> None:
    ended = run("train", signal.SIGTERM, tmp_path)

    assert ended.code == 143, ended.errors
    check(ended, "train", signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["first", "group"])
@pytest.mark.parametrize("signum", ALL_SIGNALS[1:])
def test_signal_in_training_ends_the_program_with_its_number(
    signum: int, to: Literal["first", "group"], tmp_path: Path
) -> None:
    ended = run("train", signum, tmp_path, to=to)

    assert ended.code == 128 + signum, ended.errors
    check(ended, "train", signum)


@pytest.mark.slow
@pytest.mark.parametrize("signum", ALL_SIGNALS)
@pytest.mark.parametrize("method", METHODS[1:])
def test_signal_elsewhere_ends_the_program_with_its_number(method: str, signum: int, tmp_path: Path) -> None:
    ended = run(method, signum, tmp_path)

    assert ended.code == 128 + signum, ended.errors
    check(ended, method, signum)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("launch", "signum", "to"),
    [
        ("script", signal.SIGTERM, "first"),
        ("script", signal.SIGINT, "group"),
        ("script", signal.SIGINT, "first"),
        ("spawn", signal.SIGTERM, "first"),
        ("spawn", signal.SIGUSR1, "first"),
        ("spawn", signal.SIGINT, "group"),
    ],
)
@pytest.mark.parametrize("method", ["train", "validation", "predict"])
def test_signal_to_two_processes_of_a_launcher_ends_both_at_one_step(
    launch: str, method: str, signum: int, to: Literal["first", "group"], tmp_path: Path
) -> None:
    ended = run(method, signum, tmp_path, ranks=2, launch=launch, to=to)

    assert ended.code == 128 + signum, ended.errors
    check(ended, method, signum, ranks=2)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("signum", "to"), [(signal.SIGTERM, "first"), (signal.SIGINT, "first"), (signal.SIGINT, "group")]
)
@pytest.mark.parametrize("method", ["train", "validation", "predict"])
def test_signal_to_torchrun_ends_all_ranks_at_one_step(
    method: str, signum: int, to: Literal["first", "group"], tmp_path: Path
) -> None:
    ended = run(method, signum, tmp_path, ranks=2, launch="torchrun", to=to)
    ended.errors = ended.errors.partition("Traceback (most recent call last)")[0]  # torchrun's own

    assert ended.code == 1
    check(ended, method, signum, ranks=2)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ranks_may_end_a_stream_at_different_times_and_still_obey(tmp_path: Path) -> None:
    ended = run("stream", signal.SIGTERM, tmp_path, ranks=2)

    assert ended.code == 143, ended.errors
    check(ended, "stream", signal.SIGTERM, ranks=2)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_rank_that_is_slower_to_take_down_is_waited_for(tmp_path: Path) -> None:
    ended = run("train", signal.SIGTERM, tmp_path, ranks=2, slow_teardown_s=5.0)

    assert ended.code == 143, ended.errors
    check(ended, "train", signal.SIGTERM, ranks=2)
