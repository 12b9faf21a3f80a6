"""torchrun starts lost workers again, and the run goes on from its newest checkpoint, also on fewer processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed_harness import free_port, rank_environment

SCRIPT = Path(__file__).with_name("elastic.py")
ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 24
STEPS = 8  # two epochs of 96 samples
DIES_AFTER = 5
SAVED_AT = 3
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextmanager
def torchrun(folder: Path, *options: str, dies_at: str = "") -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if name not in rank_environment(0, 1, 0)}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(SCRIPT), str(folder), str(GLOBAL_BATCH)]
    process = subprocess.Popen(
        command, env={**environment, "DIES_AT": dies_at}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return out


def steps_of(folder: Path, **which: int) -> dict[int, list[int]]:
    """For each step, the samples of all processes; of the attempt, or the number of processes, that is asked for."""
    seen: dict[int, list[int]] = {}
    for path in folder.glob("notes_of_*.jsonl"):
        for told in map(json.loads, path.read_text().splitlines()):
            if all(told[name] == value for name, value in which.items()):
                seen[told["step"]] = sorted(seen.get(told["step"], []) + told["ids"])
    return seen


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return weights


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with torchrun(folder, "--standalone", "--nproc-per-node=2") as process:
        finish(process)
    return folder


def test_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_happened(
    uninterrupted: Path, tmp_path: Path
) -> None:
    options = ("--standalone", "--nproc-per-node=2", "--max-restarts=2")
    with torchrun(tmp_path, *options, dies_at=f"1:{DIES_AFTER}") as process:
        finish(process)

    expected, again = steps_of(uninterrupted), steps_of(tmp_path, attempt=1)
    assert sorted(expected) == list(range(STEPS))
    assert sorted(again) == list(range(SAVED_AT, STEPS))
    assert again == {step: expected[step] for step in again}
    for name, value in weights_of(uninterrupted).items():
        assert torch.equal(weights_of(tmp_path)[name], value), name


def test_run_goes_on_with_two_machines_when_the_third_is_gone(uninterrupted: Path, tmp_path: Path) -> None:
    port = free_port()

    def agent(is_host: bool, dies_at: str = "") -> Any:
        settings = f"is_host={int(is_host)},last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"
        meeting = ("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-conf={settings}")
        size = ("--nnodes=2:3", "--nproc-per-node=1", "--max-restarts=3", "--local-addr=127.0.0.1")
        return torchrun(tmp_path, *meeting, *size, dies_at=dies_at)

    with agent(True) as first, agent(False) as second, agent(False, f"0:{DIES_AFTER}:agent") as third:
        third.wait(400)
        finish(first)
        finish(second)

    expected, before, after = (
        steps_of(uninterrupted),
        steps_of(tmp_path, world_size=3),
        steps_of(tmp_path, world_size=2),
    )
    assert sorted(before) == list(range(DIES_AFTER + 1))
    assert {step: before[step] for step in range(DIES_AFTER)} == {step: expected[step] for step in range(DIES_AFTER)}
    assert sorted(after) == list(range(SAVED_AT, STEPS))
    assert after == {step: expected[step] for step in after}
    for name, value in weights_of(uninterrupted).items():
        torch.testing.assert_close(weights_of(tmp_path)[name], value, rtol=1e-6, atol=1e-6)
