"""Callbacks where ranks have only parts of the weights do what they do on one device, or say that they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.on_parts import CASES, SAVED_AT, find_learning_rate, fit, refusals, run_cases, save_and_resume
from tests.distributed_harness import run_all, run_ranks

STRATEGIES = ["fsdp", "model_parallel"]
SHARDS = {"fsdp": {"state_dict_type": "sharded"}, "model_parallel": {"save_distributed_checkpoint": True}}
WHOLE = {"fsdp": {"state_dict_type": "full"}, "model_parallel": {"save_distributed_checkpoint": False}}
pytestmark = pytest.mark.timeout(600)


def run_on_ranks(world_size: int, calls: list[tuple[Any, tuple[Any, ...]]]) -> list[list[Any]]:
    """Return for each call what it gave on each rank."""
    by_rank = run_ranks(run_all, world_size, calls, timeout=500)
    for results in by_rank:
        assert not [each for each in results if isinstance(each, str)], "\n".join(map(str, results))
    return [list(each) for each in zip(*by_rank, strict=True)]


def assert_close(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], value, rtol=1e-5, atol=1e-5)
    assert actual["val_losses"] == pytest.approx(expected["val_losses"], rel=1e-5)
    assert actual["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, nan_ok=True)
    for one, other in zip(actual["callbacks"], expected["callbacks"], strict=True):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=1e-4), name


def test_an_average_and_gradients_in_shards_are_those_of_one_device(tmp_path: Path) -> None:
    cases = ["average", "one batch to validate on"]
    expected = run_cases("auto", str(tmp_path), cases)

    (results,) = run_on_ranks(2, [(run_cases, ("fsdp", str(tmp_path), cases))])

    for result in results:
        for case in cases:
            assert_close(result[case], expected[case])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "world_size"), [("fsdp", 2), ("model_parallel", 2), ("model_parallel", 4)])
def test_callbacks_do_the_same_as_on_one_device(name: str, world_size: int, tmp_path: Path) -> None:
    expected = run_cases("auto", str(tmp_path), list(CASES))
    losses = find_learning_rate("auto", str(tmp_path))["losses"]

    calls: list[Any] = [(run_cases, (name, str(tmp_path), [case])) for case in CASES]
    *results, searches = run_on_ranks(world_size, [*calls, (find_learning_rate, (name, str(tmp_path)))])

    for case, by_rank in zip(CASES, results, strict=True):
        for result in by_rank:
            assert_close(result[case], expected[case])
    for search in searches:
        assert search["losses"] == pytest.approx(losses, rel=1e-4)
        assert search["same"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_callbacks_that_need_whole_weights_say_so(name: str, tmp_path: Path) -> None:
    (results,) = run_on_ranks(2, [(refusals, (name, str(tmp_path)))])

    for said in results:
        assert len(said) == 5
        for callback, message in said.items():
            assert callback in message
            assert {"fsdp": "FSDPStrategy", "model_parallel": "ModelParallelStrategy"}[name] in message


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("case", ["average", "finetuning"])
def test_a_run_goes_on_from_shards_and_from_whole_files_also_on_one_device(
    name: str, case: str, tmp_path: Path
) -> None:
    settings = {"shards": SHARDS[name], "whole": WHOLE[name]}
    folders = {kind: tmp_path / kind for kind in settings}
    calls: list[Any] = [(save_and_resume, (name, str(folders[kind]), case, settings[kind])) for kind in settings]

    for kind, by_rank in zip(settings, run_on_ranks(2, calls), strict=True):
        for result in by_rank:
            whole, resumed = result["whole"], result["resumed"]
            assert resumed["losses"] == whole["losses"][SAVED_AT:]
            assert all(torch.equal(resumed["weights"][key], value) for key, value in whole["weights"].items())
            assert resumed["val_losses"][-1] == whole["val_losses"][-1]
        alone = fit("auto", str(tmp_path), CASES[case][0], ckpt_path=str(folders[kind] / "saved"))
        for key, value in by_rank[0]["whole"]["weights"].items():
            torch.testing.assert_close(alone["weights"][key], value, rtol=1e-5, atol=1e-5)
        assert alone["val_losses"][-1] == pytest.approx(by_rank[0]["whole"]["val_losses"][-1], rel=1e-5)
