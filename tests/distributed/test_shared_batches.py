"""Processes that work on one batch together count as one, wherever data are divided, drawn, logged or counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.pairs import Pairs, evaluate, fabric_loop_that_is_resumed, predict_and_write, rates
from tests.distributed.pairs import train_with_dropout as train_from_other_seeds
from tests.distributed.programs import trainer_results
from tests.distributed.test_equals_one_process import assert_same
from tests.distributed.test_other_world_size import assert_goes_on
from tests.distributed.worlds import run_world
from tests.distributed_harness import run_all, run_ranks

BATCH_SIZE = 24
SCENES = [evaluate, predict_and_write, train_from_other_seeds, fabric_loop_that_is_resumed, rates]
OPTIONS: dict[str, Any] = {"shuffle": True, "accumulate_grad_batches": 2, "gradient_clip_val": 0.3}
pytestmark = pytest.mark.timeout(400)


def run_scenes(folder: Path, world_size: int) -> list[dict[str, Any]]:
    """Return what each scene gave, by rank; and a whole fit, and one that is interrupted and goes on."""
    shares = world_size // 2
    calls: list[Any] = [(scene, (str(folder), world_size)) for scene in SCENES]
    calls.append((trainer_results, (world_size, BATCH_SIZE // shares, {**OPTIONS, "strategy": Pairs()})))
    pairs = {"strategy": Pairs()}
    calls.append((run_world, (str(folder / "pairs"), BATCH_SIZE // shares, pairs, None, 7)))
    calls.append((run_world, (str(folder / "again"), BATCH_SIZE // shares, pairs, str(folder / "one" / "step=7.ckpt"))))
    names = [*(scene.__name__ for scene in SCENES), "fit", "interrupted", "resumed"]
    return [dict(zip(names, each, strict=True)) for each in run_ranks(run_all, world_size, calls, timeout=300)]


def check(results: list[dict[str, Any]], one: dict[str, Any], folder: Path) -> None:
    for result in results:
        assert not [each for each in result.values() if isinstance(each, str)], result
    shares = results[::2]
    assert_peers_are_alike(results)
    assert_values_count_each_share_once(results)
    written = [each["predict_and_write"]["epoch"] for each in results]
    assert sorted(number for numbers in written for number in numbers) == list(range(11))
    assert_fabric_goes_on([each["fabric_loop_that_is_resumed"] for each in shares])
    for result in results:
        assert result["rates"]["trainer"] == result["rates"]["fabric"] == (len(results), len(shares))
        assert_same(result["fit"], trainer_results(1, BATCH_SIZE, OPTIONS))
    assert_goes_on([each["resumed"] for each in shares], [one])
    by_one = run_world(str(folder / "last"), BATCH_SIZE, {}, str(folder / "pairs" / "step=7.ckpt"))
    assert_goes_on([by_one], [each["interrupted"] for each in shares])


def assert_peers_are_alike(results: list[dict[str, Any]]) -> None:
    for first, second in zip(results[::2], results[1::2], strict=True):
        assert first["train_with_dropout"] == second["train_with_dropout"]
        assert first["fabric_loop_that_is_resumed"] == second["fabric_loop_that_is_resumed"]
        assert first["interrupted"]["batches"] == second["interrupted"]["batches"]


def assert_values_count_each_share_once(results: list[dict[str, Any]]) -> None:
    for result in results:
        evaluated = result["evaluate"]
        assert evaluated["results"] == {"count": 10.0, "mean": 4.5, "total": 45.0}
        assert evaluated["ids"] == list(range(10))
        assert evaluated["left"] is None
        assert result["predict_and_write"]["predictions"] == list(range(11))


def assert_fabric_goes_on(shares: list[dict[str, list[float]]]) -> None:
    for name, size in (("stream", 12), ("before", 4 * len(shares))):
        assert len({number for each in shares for number in each[name]}) == size
    for each in shares:
        assert each["resumed"] == each["after"]
    assert sorted(number for each in shares for number in each["before"] + each["after"]) == list(range(24))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("worlds")
    return folder, run_world(str(folder / "one"), BATCH_SIZE, {}, None, 7)


def test_two_processes_on_one_batch_do_as_one_process_does(one: tuple[Path, dict[str, Any]]) -> None:
    folder, whole = one

    check(run_scenes(folder, 2), whole, folder)


@pytest.mark.slow
def test_two_times_two_processes_do_as_one_process_does(one: tuple[Path, dict[str, Any]]) -> None:
    folder, whole = one

    results = run_scenes(folder, 4)

    check(results, whole, folder)
    drawn = [each["train_with_dropout"] for each in results]
    assert drawn[0] != drawn[2]  # the other share has other random numbers
