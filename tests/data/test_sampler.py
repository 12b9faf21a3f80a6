"""Batch samplers that remember."""

from __future__ import annotations

import pickle

import pytest
from torch.utils.data import BatchSampler, SequentialSampler

from fulmen.data import IndexRecordingBatchSampler


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
