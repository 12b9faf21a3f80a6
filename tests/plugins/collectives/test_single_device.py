"""A group of one process."""

from __future__ import annotations

import pytest
import torch

from fulmen.plugins.collectives import Collective, SingleDeviceCollective


def test_there_is_one_rank_and_nothing_to_set_up():
    collective = SingleDeviceCollective()

    assert (collective.rank, collective.world_size) == (0, 1)
    assert collective.is_available()
    assert collective.is_initialized()
    assert collective.setup() is collective


def test_group_lives_from_create_to_teardown():
    collective = SingleDeviceCollective()

    with pytest.raises(RuntimeError, match=r"`SingleDeviceCollective` does not own a group, .*create_group\(\)` first"):
        _ = collective.group
    assert collective.create_group() is collective
    assert collective.group is not None
    with pytest.raises(RuntimeError, match="already owns a group"):
        collective.create_group()
    assert collective.teardown() is collective
    with pytest.raises(RuntimeError, match="does not own a group to destroy"):
        collective.teardown()


def test_operations_fill_what_they_are_given():
    collective, one = SingleDeviceCollective(), torch.ones(2)
    outputs = [torch.zeros(2) for _ in range(5)]

    collective.all_gather([outputs[0]], one)
    collective.gather(one, [outputs[1]])
    collective.scatter(outputs[2], [one])
    collective.reduce_scatter(outputs[3], [one])
    collective.all_to_all([outputs[4]], [one])

    assert all(torch.equal(output, one) for output in outputs)
    assert collective.gather(one) == [one]


def test_operations_without_output_return_the_tensor():
    collective, one = SingleDeviceCollective(), torch.ones(2)

    assert collective.broadcast(one, 0) is one
    assert collective.all_reduce(one, op="sum") is one
    assert collective.reduce(one, 0, op="sum") is one
    assert collective.recv(one, 0) is one
    collective.send(one, 0)
    collective.barrier()


def test_a_collective_must_define_the_operations():
    class Unfinished(Collective):
        pass

    with pytest.raises(TypeError, match="abstract method"):
        Unfinished()  # type: ignore[abstract]  # that is the point
