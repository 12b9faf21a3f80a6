"""How processes agree on the attempt they belong to, in a store that remembers earlier ones."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, but not declared so

from fulmen.strategies.attempt import agree_on_attempt


def _wait() -> None:
    time.sleep(0.001)


def _agree(store: Any, world_size: int, ranks: list[int]) -> set[str]:
    def join(rank: int) -> str:
        time.sleep(0.01 * (world_size - rank))  # rank 0 comes last
        return agree_on_attempt(store, rank=rank, world_size=world_size, what="group", wait=_wait)

    with ThreadPoolExecutor(world_size) as pool:
        return set(pool.map(join, ranks))


def test_all_ranks_of_an_attempt_get_one_name_and_the_next_attempt_another() -> None:
    store = HashStore()
    names = [_agree(store, world_size, list(range(world_size))) for world_size in (3, 3, 2, 4)]

    assert [len(name) for name in names] == [1, 1, 1, 1]
    assert len(set.union(*names)) == 4


def test_call_of_a_process_that_died_does_not_stand_for_the_one_that_takes_its_place() -> None:
    store = HashStore()
    store.set("fulmen/attempts/group/call_of_1", "of the dead one")

    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        agree_on_attempt(store, rank=0, world_size=2, what="group", wait=give_up)
    assert len(_agree(store, 2, [0, 1])) == 1


def test_one_process_agrees_with_itself() -> None:
    assert agree_on_attempt(HashStore(), rank=0, world_size=1, what="group", wait=_wait)
