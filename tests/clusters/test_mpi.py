"""Processes started by `mpirun`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fulmen.utilities.lazy import is_installed
from tests.clusters.hosts import run_on_hosts
from tests.distributed_harness import run_script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no `mpirun` on the search path"),
    pytest.mark.skipif(not is_installed("mpi4py"), reason="the package mpi4py is not installed"),
]

SCRIPT = Path(__file__).with_name("train.py")


def mpirun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["mpirun", "-n", "2", "--allow-run-as-root", "--oversubscribe", sys.executable, str(SCRIPT), *arguments]
    return run_on_hosts([command], timeout=60)[0]


@pytest.mark.parametrize("face", [[], ["--fabric"]], ids=["trainer", "fabric"])
def test_ranks_of_mpirun_train_as_one_process(tmp_path, face):
    ended = mpirun(str(tmp_path / "mpi"), "--batch-size", "8", *face)
    run_script(SCRIPT, str(tmp_path / "alone"), "--devices", "1", "--batch-size", "16", *face)

    assert ended.returncode == 0, ended.stdout
    assert sorted(re.findall("rank . of .*", ended.stdout)) == ["rank 0 of 2, 0 on 0", "rank 1 of 2, 1 on 0"]
    torch.testing.assert_close(
        torch.load(tmp_path / "mpi" / "weights.pt"), torch.load(tmp_path / "alone" / "weights.pt"), rtol=0, atol=1e-6
    )


def test_failing_rank_of_mpirun_ends_the_other(tmp_path):
    ended = mpirun(str(tmp_path), "--fail", "raise", "1")

    assert ended.returncode != 0
    assert "ValueError: no more of this on rank 1" in ended.stdout
