"""Collective operations of torch.distributed, on two processes over gloo."""

from __future__ import annotations

import datetime
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fulmen.plugins.collectives import TorchCollective
from fulmen.plugins.collectives.torch_collective import default_pg_timeout
from tests.distributed_harness import free_port, run_ranks


def operations():
    """Each operation once; returns what this rank got."""
    collective = TorchCollective().setup(backend="gloo", timeout=datetime.timedelta(seconds=30))
    rank = collective.rank
    mine = torch.tensor([rank + 1.0])
    got: dict[str, Any] = {"ranks": (rank, collective.world_size)}
    for op in ("sum", "max", "MIN", "product", dist.ReduceOp.SUM):
        got[str(op)] = collective.all_reduce(mine.clone(), op).item()
    got["default op"] = collective.all_reduce(mine.clone()).item()
    got["broadcast"] = collective.broadcast(mine.clone(), 1).item()
    reduced = collective.reduce(mine.clone(), 1).item()
    got["reduce"] = reduced if rank == 1 else None
    got["all_gather"] = torch.cat(collective.all_gather([torch.zeros(1), torch.zeros(1)], mine)).tolist()
    gathered = collective.gather(mine, [torch.zeros(1), torch.zeros(1)] if rank == 1 else [], dst=1)
    got["gather"] = [part.item() for part in gathered]
    got["scatter"] = collective.scatter(torch.zeros(1), [mine, mine * 10] if rank == 0 else []).item()
    got["reduce_scatter"] = collective.reduce_scatter(torch.zeros(1), [mine, mine * 10]).item()
    exchanged = collective.all_to_all([torch.zeros(1), torch.zeros(1)], [mine, mine * 10])
    got["all_to_all"] = torch.cat(exchanged).tolist()
    if rank == 0:
        collective.send(mine, 1, tag=3)
    else:
        got["recv"] = collective.recv(torch.zeros(1), 0, tag=3).item()
    got["all_gather_object"] = collective.all_gather_object([None, None], {"rank": rank})
    got["broadcast_object_list"] = collective.broadcast_object_list([rank, "text"], 1)
    got["gather_object"] = collective.gather_object(f"r{rank}", [None, None] if rank == 0 else None)
    got["scatter_object_list"] = collective.scatter_object_list([None], ["a", "b"] if rank == 0 else None)
    collective.barrier()
    collective.monitored_barrier(timeout=datetime.timedelta(seconds=20))
    collective.teardown()
    got["initialized at the end"] = dist.is_initialized()
    return got


def groups():
    """Groups beside the default one; returns what this rank saw."""
    owner = TorchCollective().setup(backend="gloo")
    guest = TorchCollective().setup()
    both = TorchCollective().create_group()
    alone = TorchCollective().create_group(ranks=[1])
    seen: dict[str, Any] = {
        "manages": (owner.manages_default_group, guest.manages_default_group),
        "both": (both.rank, both.world_size),
        "alone": (alone.rank, alone.world_size),
    }
    if alone.rank == 0:
        seen["sum alone"] = alone.all_reduce(torch.ones(1)).item()
    alone.teardown()
    both.teardown()
    seen["own group of the guest"] = guest.create_group(ranks=[0, 1]).world_size
    guest.teardown()
    seen["after the guests"] = owner.all_reduce(torch.ones(1)).item()
    owner.teardown()
    seen["initialized at the end"] = dist.is_initialized()
    return seen


@pytest.mark.distributed
def test_operations_on_two_ranks():
    first, second = run_ranks(operations)

    assert (first.pop("ranks"), second.pop("ranks")) == ((0, 2), (1, 2))
    assert second.pop("recv") == 1.0
    assert (first.pop("reduce"), second.pop("reduce")) == (None, 3.0)
    assert (first.pop("gather"), second.pop("gather")) == ([], [1.0, 2.0])
    assert (first.pop("scatter"), second.pop("scatter")) == (1.0, 10.0)
    assert (first.pop("reduce_scatter"), second.pop("reduce_scatter")) == (3.0, 30.0)
    assert (first.pop("all_to_all"), second.pop("all_to_all")) == ([1.0, 2.0], [10.0, 20.0])
    assert (first.pop("gather_object"), second.pop("gather_object")) == (["r0", "r1"], None)
    assert (first.pop("scatter_object_list"), second.pop("scatter_object_list")) == (["a"], ["b"])
    assert first == second
    assert first == {
        "sum": 3.0,
        "max": 2.0,
        "MIN": 1.0,
        "product": 2.0,
        str(dist.ReduceOp.SUM): 3.0,
        "default op": 3.0,
        "broadcast": 2.0,
        "all_gather": [1.0, 2.0],
        "all_gather_object": [{"rank": 0}, {"rank": 1}],
        "broadcast_object_list": [1, "text"],
        "initialized at the end": False,
    }


@pytest.mark.distributed
def test_only_who_made_the_default_group_ends_it():
    first, second = run_ranks(groups)

    assert first["alone"] == (-1, -1)
    assert second["alone"] == (0, 1)
    assert second["sum alone"] == 1.0
    for seen in (first, second):
        assert seen["manages"] == (True, False)
        assert seen["both"][1] == seen["own group of the guest"] == 2
        assert seen["after the guests"] == 2.0
        assert not seen["initialized at the end"]


# ---- one process
@pytest.fixture
def alone(monkeypatch):
    """A collective with a default group of one process; the environment variables are not set."""
    for variable in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    collective = TorchCollective()
    collective.setup(main_address="127.0.0.1", main_port=free_port(), backend="gloo", rank=0, world_size=1)
    yield collective
    if dist.is_initialized():
        dist.destroy_process_group()


def test_operations_need_a_group():
    collective = TorchCollective()

    with pytest.raises(RuntimeError, match="`TorchCollective` does not own a group"):
        collective.all_reduce(torch.ones(1))
    with pytest.raises(RuntimeError, match="does not own a group"):
        _ = collective.rank
    with pytest.raises(RuntimeError, match="does not own a group"):
        collective.teardown()


def test_a_group_needs_the_default_group():
    with pytest.raises(RuntimeError, match=r"has not been initialized. Call `collective.setup\(...\)` first"):
        TorchCollective().create_group()


def test_setup_leaves_the_environment_as_it_was(alone):
    assert not {"MASTER_ADDR", "MASTER_PORT"} & set(os.environ)
    assert alone.manages_default_group


def test_a_setup_that_fails_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "before")

    with pytest.raises(ValueError, match="RANK expected"):
        TorchCollective().setup(main_address="127.0.0.1", main_port="1", backend="gloo")
    assert os.environ["MASTER_ADDR"] == "before"
    assert "MASTER_PORT" not in os.environ


def test_setup_twice_is_setup_once(alone):
    group = alone.group

    assert alone.setup(backend="gloo") is alone
    assert alone.group is group


def test_a_second_group_of_its_own_is_refused(alone):
    alone.create_group(ranks=[0])

    with pytest.raises(RuntimeError, match="already owns a group"):
        alone.create_group(ranks=[0])


@pytest.mark.parametrize("op", ["mean", "", 3, None])
def test_unknown_operations_are_refused(alone, op):
    with pytest.raises(ValueError, match=r"`op=.*` is not an operation .* 'avg', 'band'"):
        alone.all_reduce(torch.ones(1), op=op)


def test_a_collective_can_be_set_up_again(alone):
    alone.teardown()
    assert not dist.is_initialized()

    alone.setup(main_address="127.0.0.1", main_port=free_port(), backend="gloo", rank=0, world_size=1)
    assert alone.world_size == 1


def test_destroying_no_group_does_nothing(alone):
    TorchCollective.destroy_group(None)
    TorchCollective.destroy_group(dist.GroupMember.NON_GROUP_MEMBER)

    assert alone.is_initialized()


def test_default_timeout_is_half_an_hour():
    assert default_pg_timeout == datetime.timedelta(minutes=30)
