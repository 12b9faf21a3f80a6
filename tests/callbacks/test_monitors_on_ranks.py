from __future__ import annotations

from typing import Any

import pytest

from tests.callbacks import monitors_on_ranks as runs
from tests.distributed_harness import run_all, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    folders = [str(tmp_path_factory.mktemp("run")) for _ in range(4)]
    jobs: list[Any] = [
        (runs.noise_of_ranks, (folders[0], 1)),
        (runs.noise_of_ranks, (folders[1], 2)),
        (runs.monitor, (folders[2],)),
        (runs.spike_on_one_rank, (folders[3],)),  # last, as it ends in an error
    ]
    return run_ranks(run_all, 2, jobs, timeout=250)


@pytest.mark.parametrize(("position", "accumulate"), [(0, 1), (1, 2)])
def test_noise_of_two_ranks_is_that_of_one_with_twice_the_micro_batches(tmp_path, on_two_ranks, position, accumulate):
    """The ranks take turns in the order of one process, so the same samples meet in a step, in other small batches."""
    alone = runs.noise_of_ranks(str(tmp_path), 2 * accumulate)
    first, second = (rank[position] for rank in on_two_ranks)

    assert first == second
    assert first["step"] == alone["step"]
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert first["noise"]["weight"] == alone["noise"]["weight"]
    assert first["noise"]["noise"] == pytest.approx(alone["noise"]["noise"], rel=0.3)


def test_rates_of_all_ranks_are_logged(on_two_ranks):
    names = on_two_ranks[0][2]

    assert {"train/device/samples_per_sec", "train/samples_per_sec", "train/flops_per_sec"} <= set(names)


def test_a_jump_on_one_rank_ends_all(on_two_ranks):
    for rank in on_two_ranks:
        assert rank[3] == {"batch": 5, "file": [4, 5]}
