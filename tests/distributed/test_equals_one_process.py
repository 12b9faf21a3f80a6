"""One process with batches of 24, two with 12 and four with 6 give the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.programs import fabric_results, trainer_results
from tests.distributed_harness import run_all, run_ranks

BATCH_SIZE = 24
TIMEOUT_S = 200
SETTINGS: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled": {"shuffle": True, "optimizer": "adam"},
    "accumulated and clipped": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3, "shuffle": True},
    "last batch dropped": {"drop_last": True},
    "with workers": {"workers": 2, "shuffle": True},
    "limited": {"limit_train_batches": 3, "val_check_interval": 2},
}


def assert_same(actual: Any, expected: dict[str, Any]) -> None:
    assert isinstance(actual, dict), actual
    assert actual["steps"] == expected["steps"]
    for name, value in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], value, rtol=1e-6, atol=1e-6)
    assert actual["fit_metrics"].keys() == expected["fit_metrics"].keys()
    for name, number in expected["fit_metrics"].items():
        assert actual["fit_metrics"][name] == pytest.approx(number, abs=1e-6), name
    assert len(actual["validated"]) == len(expected["validated"])
    for row, expected_row in zip(actual["validated"], expected["validated"], strict=True):
        assert row == pytest.approx(expected_row, abs=1e-6)
    torch.testing.assert_close(actual["predicted"], expected["predicted"], rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def on_two_ranks() -> dict[str, list[Any]]:
    calls = [(trainer_results, (2, BATCH_SIZE // 2, options)) for options in SETTINGS.values()]
    by_rank = run_ranks(run_all, 2, calls, timeout=TIMEOUT_S)
    return dict(zip(SETTINGS, zip(*by_rank, strict=True), strict=True))  # type: ignore[arg-type]  # tuples are read


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.timeout(300)
def test_two_ranks_train_validate_and_predict_as_one_process_does(
    setting: str, on_two_ranks: dict[str, list[Any]]
) -> None:
    expected = trainer_results(1, BATCH_SIZE, SETTINGS[setting])

    for actual in on_two_ranks[setting]:
        assert_same(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["shuffled", "accumulated and clipped"])
def test_four_ranks_train_validate_and_predict_as_one_process_does(setting: str) -> None:
    options = SETTINGS[setting]
    expected = trainer_results(1, BATCH_SIZE, options)

    for actual in run_ranks(trainer_results, 4, 4, BATCH_SIZE // 4, options, timeout=TIMEOUT_S):
        assert_same(actual, expected)


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_processes_that_the_trainer_starts_bring_everything_back(start_method: str) -> None:
    options = {"shuffle": True, "optimizer": "adam"}
    expected = trainer_results(1, BATCH_SIZE, options)

    actual = trainer_results(2, BATCH_SIZE // 2, {**options, "strategy": f"ddp_{start_method}"})

    assert_same(actual, expected)


def test_a_fabric_loop_on_two_ranks_gives_the_numbers_of_one_process() -> None:
    options = {"shuffle": True, "accumulate": 2, "clip": 0.3}
    expected = fabric_results(1, BATCH_SIZE, options)

    for actual in run_ranks(fabric_results, 2, 2, BATCH_SIZE // 2, options, timeout=TIMEOUT_S):
        assert actual["losses"] == pytest.approx(expected["losses"], abs=1e-6)
        for name, value in expected["weights"].items():
            torch.testing.assert_close(actual["weights"][name], value, rtol=1e-6, atol=1e-6)
