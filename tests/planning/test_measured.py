"""What a plan says against what real runs on two ranks hold and exchange, for a model of 140 MiB."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed_harness import run_ranks
from tests.planning.measured_runs import BATCH, CONFIGURATIONS, LENGTH, make_module, make_trainer, run_measured


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_planned_work_is_as_measured_and_memory_within_10_percent(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        module = make_module(name)

    plan = make_trainer(name, tmp_path).plan(module, f"{BATCH}x{LENGTH}:int64")
    measured, _ = run_ranks(run_measured, 2, name, str(tmp_path), timeout=100)

    for role in ("weights", "optimizer state"):
        assert plan.memory[role].at_most == pytest.approx(measured[role], rel=0.1)
    assert plan.peak_bytes == pytest.approx(measured["peak"], rel=0.1)
    assert plan.flops == measured["flops"]
    assert sorted((each.kind, each.count, each.payload_bytes) for each in plan.exchanges) == measured["exchanges"]
