"""Weights that `fully_shard` gathers in float8: the same results for a quarter of the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed_harness import run_all, run_ranks
from tests.plugins.precision import float8_runs as runs

TIMEOUT = 180


@pytest.fixture(autouse=True)
def _torchao() -> None:
    pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each of two ranks sees; all in one start of the processes."""
    pytest.importorskip("torchao")
    work: dict[str, Any] = {
        "full": (runs.resumed, (tmp_path_factory.mktemp("full"), "full")),
        "sharded": (runs.resumed, (tmp_path_factory.mktemp("sharded"), "sharded")),
        "steps": (runs.fabric_steps, (False, False)),
        "steps in float8": (runs.fabric_steps, (True, False)),
        "writes": (runs.fabric_steps, (False, True)),
        "writes in float8": (runs.fabric_steps, (True, True)),
        "bytes": (runs.gathered_bytes, ("rowwise",)),
        "bytes in float8": (runs.gathered_bytes, ("tensorwise",)),
        "tied": (runs.tied, ()),
    }
    return dict(zip(work, zip(*run_ranks(run_all, 2, list(work.values()), timeout=TIMEOUT), strict=True), strict=True))


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_losses_are_the_same_to_the_bit_also_after_a_resume(on_two_ranks: dict[str, Any], kind: str) -> None:
    for losses in on_two_ranks[kind]:
        assert len(losses["32 bit"][0]) == 8
        assert losses["float8"] == losses["32 bit"] == losses["crossed"]


@pytest.mark.slow
def test_losses_are_the_same_where_weights_are_not_divisible_by_the_number_of_ranks(tmp_path: Path) -> None:
    for losses in run_ranks(runs.resumed, 3, tmp_path, "full", timeout=TIMEOUT):
        assert losses["float8"] == losses["32 bit"]


def test_losses_of_fabric_are_the_same(on_two_ranks: dict[str, Any]) -> None:
    assert on_two_ranks["steps in float8"] == on_two_ranks["steps"]


def test_factors_are_those_of_the_weights_whoever_wrote_them(on_two_ranks: dict[str, Any]) -> None:
    assert on_two_ranks["writes in float8"] == on_two_ranks["writes"] != on_two_ranks["steps"]


def test_a_quarter_of_the_bytes_is_sent(on_two_ranks: dict[str, Any]) -> None:
    for plain, small in zip(on_two_ranks["bytes"], on_two_ranks["bytes in float8"], strict=True):
        assert small < 0.3 * plain  # biases are sent in 32 bit


def test_weights_that_other_layers_read_are_gathered_as_they_are(on_two_ranks: dict[str, Any]) -> None:
    assert on_two_ranks["tied"] == (["Float8TrainingTensor", "Parameter"],) * 2
