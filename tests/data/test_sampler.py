"""Batch samplers that remember."""

from __future__ import annotations

import pickle

import pytest
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler

from fulmen.data import IndexRecordingBatchSampler
from fulmen.data.sampler import (
    DistributedSamplerWrapper,
    UnrepeatedDistributedSampler,
    UnrepeatedDistributedSamplerWrapper,
)


def test_indices_of_the_current_pass_are_kept():
    sampler = IndexRecordingBatchSampler(BatchSampler(SequentialSampler(range(5)), 2, False))

    assert list(sampler) == sampler.seen_batch_indices == [[0, 1], [2, 3], [4]]
    next(iter(sampler))
    assert sampler.seen_batch_indices == [[0, 1]]
    assert len(sampler) == 3


def test_a_list_that_is_filled_again_is_copied():
    class Reusing:
        def __iter__(self):
            batch: list[int] = []
            for i in range(3):
                batch[:] = [i]
                yield batch

    sampler = IndexRecordingBatchSampler(Reusing())
    list(sampler)

    assert sampler.seen_batch_indices == [[0], [1], [2]]
    with pytest.raises(TypeError):
        len(sampler)


def test_attributes_of_the_batch_sampler_can_be_read():
    inner = BatchSampler(SequentialSampler(range(5)), 2, False)
    sampler = pickle.loads(pickle.dumps(IndexRecordingBatchSampler(inner)))

    assert (sampler.batch_size, sampler.drop_last) == (2, False)
    with pytest.raises(AttributeError):
        _ = sampler.nothing


# ---- names for programs that divide samples themselves


class Letters:
    """Samples of a dataset with other keys than numbers."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        return iter("abcde" if self.epoch == 0 else "edcba")

    def __len__(self) -> int:
        return 5


def test_a_wrapped_sampler_is_divided_evenly():
    ranks = [DistributedSamplerWrapper(Letters(), num_replicas=2, rank=rank, shuffle=False) for rank in range(2)]

    assert [list(rank) for rank in ranks] == [["a", "c", "e"], ["b", "d", "a"]]
    ranks[0].set_epoch(1)
    assert list(ranks[0]) == ["e", "c", "a"]
    assert isinstance(ranks[0], DistributedSampler)


def test_an_unrepeated_sampler_gives_each_sample_once():
    for shuffle in (False, True):
        ranks = [UnrepeatedDistributedSampler(range(5), 3, rank, shuffle=shuffle) for rank in range(3)]
        assert sorted(index for rank in ranks for index in rank) == [0, 1, 2, 3, 4]
        assert [len(rank) for rank in ranks] == [2, 2, 1]
    ranks = [UnrepeatedDistributedSamplerWrapper(Letters(), 2, rank, shuffle=False) for rank in range(2)]
    assert [list(rank) for rank in ranks] == [["a", "c", "e"], ["b", "d"]]


def test_a_sampler_without_length_is_not_wrapped():
    with pytest.raises(TypeError, match="has no length"):
        DistributedSamplerWrapper(iter("ab"), 2, 0)
