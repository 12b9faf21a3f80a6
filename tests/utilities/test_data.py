"""Sizes of loaders, and their workers."""

import os
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fulmen.utilities.data import (
    has_iterable_dataset,
    has_len,
    has_len_all_ranks,
    sized_len,
    suggested_max_num_workers,
)


class Stream(IterableDataset[int]):
    """Numbers without a length."""

    def __iter__(self):
        return iter(range(3))


class SizedStream(Stream):
    """Numbers with a length."""

    def __len__(self):
        return 3


def loader_over(samples: Any, **arguments: Any) -> DataLoader[Any]:
    """A loader over a list, which is a dataset for torch though not for its annotations."""
    return DataLoader(samples, **arguments)


class NoLength:
    """Something that only pretends to have a length."""

    def __len__(self):
        raise NotImplementedError


class Ranks:
    """What is asked of a strategy, with the lengths of the other ranks made up."""

    root_device = torch.device("cpu")

    def __init__(self, *others: int):
        self.others = others

    def reduce(self, tensor, *, reduce_op):
        assert reduce_op == "sum"
        return tensor + sum(self.others)


@pytest.mark.parametrize(
    ("loader", "length"),
    [([1, 2], 2), (loader_over([1, 2, 3], batch_size=2), 2), (DataLoader(Stream()), None), (iter([]), None), (3, None)],
)
def test_the_length_is_found_where_there_is_one(loader, length):
    assert sized_len(loader) == length
    assert has_len(loader) is (length is not None)


def test_a_length_that_is_not_implemented_is_none():
    assert sized_len(NoLength()) is None


def test_a_loader_over_an_iterable_dataset_is_recognized():
    assert has_iterable_dataset(DataLoader(Stream()))
    assert not has_iterable_dataset(loader_over([1]))
    assert not has_iterable_dataset([1])


def test_an_empty_loader_warns():
    with pytest.warns(UserWarning, match="`DataLoader` returned 0 length"):
        assert has_len(loader_over([]))


def test_a_stream_with_a_length_warns():
    with pytest.warns(UserWarning, match="`IterableDataset` has `__len__` defined"):
        assert has_len(DataLoader(SizedStream()))


def test_all_ranks_are_asked():
    assert has_len_all_ranks(loader_over([1]), Ranks(0, 5))
    assert not has_len_all_ranks(DataLoader(Stream()), Ranks(5))
    with pytest.warns(UserWarning, match="Total length of `DataLoader` across ranks is zero"):
        assert has_len_all_ranks(loader_over([]), Ranks(0))
    with pytest.warns(UserWarning, match="`IterableDataset` has `__len__` defined"):
        assert has_len_all_ranks(DataLoader(SizedStream()), Ranks(3))


def test_a_rank_with_nothing_to_read_is_refused_unless_it_is_allowed():
    with pytest.raises(RuntimeError, match="no batches on this rank, but 5 on all ranks"):
        has_len_all_ranks([], Ranks(5))

    assert has_len_all_ranks([], Ranks(5), allow_zero_length_dataloader_with_multiple_devices=True)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not on this system")
@pytest.mark.parametrize(("cores", "processes", "workers"), [(8, 1, 7), (8, 2, 3), (8, 8, 1), (1, 1, 1), (4, 9, 1)])
def test_workers_get_the_cores_that_the_processes_leave(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))

    assert suggested_max_num_workers(processes) == workers


def test_workers_for_no_process_are_refused():
    with pytest.raises(ValueError, match="`local_world_size` should be >= 1, got 0"):
        suggested_max_num_workers(0)
