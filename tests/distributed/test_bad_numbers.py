from __future__ import annotations

import math
from typing import Any

import pytest

from tests.distributed import bad_numbers
from tests.distributed_harness import run_all, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """What two ranks return for each scene, played in the same processes one after the other."""
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "skip": (bad_numbers.guarded, ("skip",)),
        "rollback": (bad_numbers.guarded, ("rollback",)),
        "unguarded": (bad_numbers.unguarded, ()),
        "divided": (bad_numbers.divided, (1,)),
        "divided windows": (bad_numbers.divided, (2, True, 4)),
        "whole": (bad_numbers.divided, (10**6, False)),
        "whole windows": (bad_numbers.divided, (10**6, False, 4)),
        "auto": (bad_numbers.divided, ()),
    }
    jobs = [(scene, (str(tmp_path_factory.mktemp("run")), *args)) for scene, args in calls.values()]
    return dict(zip(calls, zip(*run_ranks(run_all, 2, jobs, timeout=200), strict=True), strict=True))


@pytest.mark.parametrize(("action", "kept"), [("skip", 2), ("rollback", 1)])
def test_all_ranks_leave_out_the_step_of_one(action: str, kept: int, played: Any) -> None:
    first, second = played[action]

    assert first["weights"] == second["weights"]
    assert first["weights"][3] == first["weights"][kept]
    assert all(map(math.isfinite, first["vector"]))
    assert first["skips"] + first["rollbacks"] == second["skips"] + second["rollbacks"] == 1
    assert "the loss is nan in batch 3 on rank 1" in first["warnings"][0]
    assert second["warnings"] == []


def test_without_a_guard_the_rank_reports_its_own_loss(played: Any) -> None:
    first, second = played["unguarded"]

    assert "epoch 0, batch 3 on rank 1 of 2" in second["warnings"][0]
    assert "batch 4 on rank 0 of 2" in first["warnings"][0]  # after the step that spoilt the weights


def test_stop_names_the_rank_everywhere(tmp_path: Any) -> None:
    results = run_ranks(bad_numbers.guarded, 2, str(tmp_path), "stop", timeout=100)

    for result in results:
        assert result["error"].startswith("NonFiniteError: Training ends at epoch 0, batch 3, global step 3")
        assert "the loss is nan in batch 3 on rank 1" in result["error"]


@pytest.mark.parametrize("windows", ["", " windows"])
def test_memory_that_runs_out_on_one_rank_divides_the_batches_of_all(windows: str, played: Any) -> None:
    divided, whole = played["divided" + windows], played["whole" + windows]

    for mine, expected in zip(divided, whole, strict=True):
        for one, other in zip(mine["weights"], expected["weights"], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
        assert mine["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
        assert mine["steps"] == expected["steps"]
    assert divided[0]["weights"] == divided[1]["weights"]
    assert divided[0]["buffers"] != whole[0]["buffers"]  # of smaller batches, by rank 0
    assert max(divided[0]["sizes"][3:]) <= 2
    assert all("on rank 1: micro-batches of" in message for message in divided[0]["warnings"])
    assert divided[0]["warnings"]


def test_where_memory_suffices_two_ranks_are_as_without(played: Any) -> None:
    for mine, expected in zip(played["auto"], played["whole"], strict=True):
        assert mine["vector"] == pytest.approx(expected["vector"], rel=1e-5)
        assert mine["sizes"] == expected["sizes"]
        assert mine["warnings"] == []


def test_a_step_that_communicates_is_refused_instead_of_hanging(tmp_path: Any) -> None:
    results = run_ranks(bad_numbers.gathering, 2, str(tmp_path), timeout=100)

    assert any("exchanges something between ranks" in result["error"] for result in results)
