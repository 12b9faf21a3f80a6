"""What each rank takes from a checkpoint that another number of ranks has written."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from fulmen.checkpoint.ranks import position_of_rank, rng_of_rank
from fulmen.utilities.rank_streams import streams_of_new_rank
from fulmen.utilities.seed import collect_rng_states, isolate_rng, set_rng_states


class Loop:
    def __init__(self, restarted_mid_epoch: bool = True) -> None:
        self.restarted_mid_epoch = restarted_mid_epoch


class Strategy:
    root_device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.data_parallel_rank, self.data_parallel_size = rank, world_size


class Run:
    """What is read of a Trainer."""

    lightning_module = torch.nn.Module()

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size = rank, world_size
        self.fit_loop, self.strategy = Loop(), Strategy(rank, world_size)


def streams(number: int) -> dict[str, Any]:
    with isolate_rng(include_cuda=False):
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number)
        return collect_rng_states(include_cuda=False)


def drawn_from(states: Any) -> tuple[float, float, float]:
    with isolate_rng(include_cuda=False):
        set_rng_states(states)
        return torch.rand(()).item(), random.random(), float(np.random.rand())


def file_of(world_size: int) -> dict[str, Any]:
    """The part of a checkpoint that is about ranks."""
    first, *others = (
        {
            "rng": streams(rank),
            "position": {
                "train": {"position": {"rng_at_start": streams(50 + rank), "restarts": {1: (2, streams(90 + rank))}}},
                "val": {"rows": [rank]},
                "callback_metrics": {"own": float(rank)},
                "metrics": [],
                "metric_states": {},
            },
        }
        for rank in range(world_size)
    )
    return {**first, "other_ranks": others} if others else first


def runs(world_size: int) -> list[Any]:
    return [Run(rank, world_size) for rank in range(world_size)]


@pytest.mark.parametrize(("old_size", "new_size"), [(4, 2), (4, 3), (4, 1), (1, 2), (2, 4), (3, 3)])
def test_ranks_that_there_were_go_on_with_their_random_numbers_and_new_ones_get_others(
    old_size: int, new_size: int
) -> None:
    own = file_of(old_size)
    drawn = [drawn_from(rng_of_rank(run, own)) for run in runs(new_size)]

    assert drawn[:old_size] == [drawn_from(streams(rank)) for rank in range(min(old_size, new_size))]
    for of_generator in zip(*drawn, strict=True):
        assert len(set(of_generator)) == new_size
    assert drawn == [drawn_from(rng_of_rank(run, own)) for run in runs(new_size)]


def test_a_generator_that_was_alike_on_all_ranks_is_so_on_new_ones() -> None:
    alike = [{**streams(rank), "python": streams(7)["python"]} for rank in range(2)]
    torch_number, python_number, _ = drawn_from(streams_of_new_rank(alike, 2))

    assert python_number == drawn_from(alike[0])[1]
    assert torch_number not in (drawn_from(alike[0])[0], drawn_from(alike[1])[0])


def test_drawing_streams_for_new_ranks_draws_nothing_here() -> None:
    before = drawn_from(collect_rng_states(include_cuda=False))
    streams_of_new_rank([streams(1)], 5)

    assert drawn_from(collect_rng_states(include_cuda=False)) == before


def test_the_random_state_of_a_gpu_follows_its_rank() -> None:
    def state(number: int) -> torch.Tensor:
        return torch.full((16,), number, dtype=torch.uint8)

    own = file_of(4)
    third = own["other_ranks"][1]  # the first of the second machine
    third["rng"]["cuda"], third["device"] = [state(1), state(2)], 0
    run = runs(3)[2]
    run.strategy.root_device = torch.device("cuda", 2)

    states = rng_of_rank(run, own)

    assert states is not None
    assert torch.equal(states["cuda"][2], state(1))


def test_positions_come_from_the_rank_itself_and_those_of_new_ranks_from_rank_zero() -> None:
    own = file_of(2)
    positions: list[Any] = [position_of_rank(run, own) for run in runs(3)]

    assert [each["callback_metrics"]["own"] for each in positions] == [0.0, 1.0, 0.0]
    assert [each["val"] for each in positions] == [{"rows": [0]}] * 3
    opened = [drawn_from(each["train"]["position"]["rng_at_start"]) for each in positions]
    restarted = [drawn_from(each["train"]["position"]["restarts"][1][1]) for each in positions]
    assert opened[:2] == [drawn_from(streams(50 + rank)) for rank in range(2)]
    assert len(set(opened)) == len(set(restarted)) == 3
    assert positions[2]["train"]["position"]["restarts"][1][0] == 2


def test_as_many_ranks_as_before_take_their_own_back() -> None:
    own = file_of(2)

    assert position_of_rank(runs(2)[1], own) is own["other_ranks"][0]["position"]
    assert rng_of_rank(runs(2)[1], own) is own["other_ranks"][0]["rng"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_file_without_our_part_has_neither(world_size: int) -> None:
    for run in runs(world_size):
        assert rng_of_rank(run, {}) is position_of_rank(run, {}) is None


def test_a_file_without_a_position_gives_random_numbers_alone() -> None:
    own = {"rng": streams(1), "position": {}}
    drawn = [drawn_from(rng_of_rank(run, own)) for run in runs(2)]

    assert drawn[0] == drawn_from(streams(1)) != drawn[1]
    assert position_of_rank(runs(2)[1], own) is None
