"""Several ranks in one process: they run one after the other, and later ones hear what rank 0 has sent."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fulmen.utilities.seed import collect_rng_states, set_rng_states

__all__ = ["FakeRanks", "run_as_ranks"]


class FakeRanks:
    """What a strategy tells and does, for one rank.

    Args:
        rank: Its number.
        world_size: Number of ranks.
        sent: What rank 0 broadcast so far; it adds to it.
        gathered: Answers of `gather_objects`; without, every rank passes the same.
        peers: How many neighbours get the same batches.
    """

    def __init__(
        self, rank: int, world_size: int, sent: list[Any], gathered: list[list[Any]] | None = None, peers: int = 1
    ) -> None:
        self.global_rank, self.world_size = rank, world_size
        self.distributed_sampler_kwargs = {"num_replicas": world_size // peers, "rank": rank // peers}
        self.sent = sent
        self.gathered = list(gathered or [])
        self.num_heard = 0
        self.num_agreed = 0

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if self.global_rank == src:
            self.sent.append(copy.deepcopy(obj))
        self.num_heard += 1
        return copy.deepcopy(self.sent[self.num_heard - 1])

    def gather_objects(self, obj: Any) -> list[Any]:
        return self.gathered.pop(0) if self.gathered else [obj] * self.world_size

    def agree(self, values: list[int], op: str = "max") -> list[int]:
        self.num_agreed += 1
        return values


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


@contextmanager
def own_random_state(number: int) -> Iterator[None]:
    before = collect_rng_states(include_cuda=False)
    seed(number)
    try:
        yield
    finally:
        set_rng_states(before)


def run_as_ranks(
    function: Callable[[FakeRanks], Any],
    world_size: int,
    *,
    seeds: list[int],
    gathered: list[list[Any]] | None = None,
    peers: int = 1,
) -> list[Any]:
    """Return what the function gives on each rank, started from these seeds."""
    sent: list[Any] = []
    results = []
    for rank in range(world_size):
        with own_random_state(seeds[rank]):
            results.append(function(FakeRanks(rank, world_size, sent, gathered, peers)))
    return results
