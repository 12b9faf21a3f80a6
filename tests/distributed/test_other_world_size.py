"""A run that was interrupted within an epoch goes on on another number of processes as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.worlds import NUM_SAMPLES, run_world, seen_by_epoch
from tests.distributed_harness import run_all, run_ranks

GLOBAL_BATCH = 24
BEFORE = 2  # batches of the second epoch before the interruption
TIMEOUT_S = 500
# at which optimizer step that is, and what is set
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "shuffled": (7, {}),
    "accumulated": (4, {"accumulate_grad_batches": 2}),
    "own generator": (7, {"kind": "own generator"}),
    "last batch dropped": (6, {"loader": {"drop_last": True}}),
    "workers": (7, {"loader": {"num_workers": 2}}),
}
pytestmark = pytest.mark.timeout(1100)


def run_on(world_size: int, calls: list[tuple[Any, ...]]) -> list[list[dict[str, Any]]]:
    """Return for each call of `run_world` what it gave on each rank."""
    functions = [(run_world, args) for args in calls]
    by_rank = [run_all(functions)] if world_size == 1 else run_ranks(run_all, world_size, functions, timeout=TIMEOUT_S)
    for result in by_rank:
        assert not [each for each in result if isinstance(each, str)], result
    return [list(results) for results in zip(*by_rank, strict=True)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For a number of processes: what they gave in each setting, and the checkpoint of the interruption."""
    known: dict[int, dict[str, tuple[list[dict[str, Any]], str]]] = {}

    def runs(world_size: int) -> dict[str, tuple[list[dict[str, Any]], str]]:
        if world_size not in known:
            folders = {name: str(tmp_path_factory.mktemp("whole")) for name in SETTINGS}
            calls = [
                (folders[name], GLOBAL_BATCH // world_size, options, None, step)
                for name, (step, options) in SETTINGS.items()
            ]
            results = run_on(world_size, calls)
            known[world_size] = {
                name: (result, str(Path(folders[name], f"step={SETTINGS[name][0]}.ckpt")))
                for name, result in zip(SETTINGS, results, strict=True)
            }
        return known[world_size]

    return runs


def assert_goes_on(resumed: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    expected, actual = seen_by_epoch(whole)[1], seen_by_epoch(resumed)[1]
    assert sorted(actual) == sorted(expected)[BEFORE:]
    for batch_idx, (ids, loss) in actual.items():
        assert ids == expected[batch_idx][0]
        assert loss == pytest.approx(expected[batch_idx][1], rel=1e-6)
    for result in resumed:
        assert result["metrics"][-1] == pytest.approx(whole[0]["metrics"][-1], rel=1e-6, abs=1e-7)
        assert result["steps"] == whole[0]["steps"]
        for name, value in whole[0]["weights"].items():
            torch.testing.assert_close(result["weights"][name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("old_size", "new_size"), [(4, 2), (4, 3), (4, 1), (1, 2), (2, 4)])
def test_batches_losses_and_metrics_are_those_of_the_uninterrupted_run(
    old_size: int, new_size: int, uninterrupted: Any, tmp_path: Path
) -> None:
    runs = uninterrupted(old_size)
    calls = [
        (str(tmp_path), GLOBAL_BATCH // new_size, options, runs[name][1]) for name, (_, options) in SETTINGS.items()
    ]

    for name, resumed in zip(SETTINGS, run_on(new_size, calls), strict=True):
        assert_goes_on(resumed, runs[name][0])


def test_one_process_goes_on_for_two_and_two_for_one(tmp_path: Path) -> None:
    one = str(tmp_path / "one")
    whole = [run_world(one, GLOBAL_BATCH, {}, None, 7)]
    resumed_by_two, two_whole = run_on(
        2,
        [
            (str(tmp_path / "resumed"), GLOBAL_BATCH // 2, {}, str(Path(one, "step=7.ckpt"))),
            (str(tmp_path / "two"), GLOBAL_BATCH // 2, {}, None, 7),
        ],
    )
    resumed_by_one = [run_world(str(tmp_path / "again"), GLOBAL_BATCH, {}, str(tmp_path / "two" / "step=7.ckpt"))]

    assert_goes_on(resumed_by_two, whole)
    assert_goes_on(resumed_by_one, two_whole)


# ---- batches of another size


def assert_each_is_seen_once(resumed: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    before = [batch for batch_idx, batch in seen_by_epoch(whole)[1].items() if batch_idx < BEFORE]
    after = seen_by_epoch(resumed)[1]
    assert sorted(i for ids, _ in (*before, *after.values()) for i in ids) == list(range(NUM_SAMPLES))
    for result in resumed:
        assert max(after) == result["num_batches"] - 1
        assert result["metrics"][-1]["count"] == NUM_SAMPLES


@pytest.mark.slow
@pytest.mark.parametrize(("old_size", "new_size"), [(4, 2), (4, 3), (4, 1), (2, 4)])
def test_with_batches_of_another_size_each_sample_is_seen_once(old_size: int, new_size: int, tmp_path: Path) -> None:
    size = GLOBAL_BATCH // old_size
    kinds: list[dict[str, Any]] = [{}, {"kind": "batch sampler"}, {"loader": {"num_workers": 2}}]
    folders = [str(tmp_path / str(i)) for i in range(len(kinds))]
    whole = run_on(old_size, [(folder, size, kind, None, 7) for folder, kind in zip(folders, kinds, strict=True)])
    calls = [
        (str(tmp_path / "resumed"), size, kind, str(Path(folder, "step=7.ckpt")))
        for folder, kind in zip(folders, kinds, strict=True)
    ]
    if new_size == 2:  # the same number of samples for each optimizer step
        calls.append((str(tmp_path / "resumed"), size, {"accumulate_grad_batches": 2}, str(calls[0][3])))
    resumed = run_on(new_size, calls)

    for after, before in zip(resumed, [*whole, whole[0]], strict=False):
        assert_each_is_seen_once(after, before)
    if new_size == 2:
        assert resumed[-1][0]["steps"] == whole[0][0]["steps"]
        assert resumed[-1][0]["metrics"][-1]["own"] == pytest.approx(whole[0][0]["metrics"][-1]["own"], rel=1e-6)
        for name, value in whole[0][0]["weights"].items():
            torch.testing.assert_close(resumed[-1][0]["weights"][name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_distributed_sampler_of_the_user_goes_on_where_it_was(tmp_path: Path) -> None:
    options = {"kind": "distributed sampler"}
    (whole,) = run_on(4, [(str(tmp_path), 6, options, None, 7)])
    (resumed,) = run_on(2, [(str(tmp_path / "resumed"), 12, options, str(tmp_path / "step=7.ckpt"))])
    before, after = ({k: ids for k, (ids, _) in seen_by_epoch(each)[1].items()} for each in (whole, resumed))

    assert {k: v for k, v in before.items() if BEFORE <= k < 4} == {k: v for k, v in after.items() if k < 4}
    assert {i for ids in before.values() for i in ids} == set(range(NUM_SAMPLES))


@pytest.mark.slow
def test_an_epoch_may_be_interrupted_again_after_it_was_divided_anew(tmp_path: Path) -> None:
    (whole,) = run_on(2, [(str(tmp_path), 12, {}, None, 7)])
    first = run_world(str(tmp_path / "1"), 10, {}, str(tmp_path / "step=7.ckpt"), 9)
    path = str(tmp_path / "1" / "step=9.ckpt")
    again = run_world(str(tmp_path / "2"), 10, {}, path)
    (other,) = run_on(2, [(str(tmp_path / "3"), 4, {}, path)])

    assert_each_is_seen_once([first], whole)
    assert again["batches"] == first["batches"][2:]
    assert again["metrics"] == first["metrics"]
    assert all(torch.equal(again["weights"][name], value) for name, value in first["weights"].items())
    first["batches"] = first["batches"][:2]
    between = {"batches": [(1, BEFORE - 1, ids, loss) for _, _, ids, loss in first["batches"]]}
    assert_each_is_seen_once(other, [*whole, between])
