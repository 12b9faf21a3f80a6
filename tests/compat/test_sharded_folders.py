"""Folders of shards move between Lightning and fulmen, optimizers included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed_harness import free_port

REFERENCE = os.environ.get("FULMEN_REFERENCE_PYTHON", "")
PROGRAM = Path(__file__).with_name("sharded_program.py")
PACKAGES = {"fulmen": sys.executable, "lightning.pytorch": REFERENCE}


def run(package: str, action: str, folder: Path) -> Any:
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = [PACKAGES[package], *launch, str(PROGRAM), package, action, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    results = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, f"{package} {action}: {ended.stderr[-4000:]}"
    return json.loads(results[0].removeprefix("RESULT "))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not REFERENCE, reason="FULMEN_REFERENCE_PYTHON names no python with lightning")
def test_each_resumes_the_folder_of_the_other_as_its_own(tmp_path: Path) -> None:
    saved = {package: run(package, "save", tmp_path / f"{package}.ckpt") for package in PACKAGES}
    resumed = {
        (by, of): run(by, "resume", tmp_path / f"{of}.ckpt")
        for by, of in [("fulmen", "lightning.pytorch"), ("lightning.pytorch", "fulmen"), ("fulmen", "fulmen")]
    }

    assert saved["fulmen"]["losses"] == pytest.approx(saved["lightning.pytorch"]["losses"], abs=1e-6)
    expected = resumed["fulmen", "fulmen"]
    assert expected["step"] == 4
    for result in resumed.values():
        assert result["step"] == expected["step"]
        assert result["losses"] == pytest.approx(expected["losses"], abs=1e-6)
