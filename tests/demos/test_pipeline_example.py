"""The example of pipeline parallelism trains what one process trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.distributed_harness import run_script

EXAMPLE = Path(__file__).parents[2] / "examples" / "pipeline.py"


@pytest.mark.distributed
def test_two_stages_train_what_one_process_trains() -> None:
    ended = run_script(EXAMPLE, timeout=120)

    assert ended.returncode == 0, ended.stderr
    told = re.search(r"loss (\S+) -> (\S+) in 60 steps\n.*at most (\S+)", ended.stdout)
    assert told, ended.stdout
    before, after, difference = map(float, told.groups())
    assert after < before / 2
    assert difference < 1e-5
