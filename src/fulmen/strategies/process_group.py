"""The process group of this process: joined once, left when the process ends.

A process can be in one world only, however many strategies it uses one after the other, so this is kept per process.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not declared so

from fulmen.strategies.attempt import agree_on_attempt, store_outlives_processes
from fulmen.utilities.distributed import is_group_initialized

__all__ = ["DEFAULT_TIMEOUT", "Membership", "check_timeout", "current_membership", "join_group", "leave_group"]

DEFAULT_TIMEOUT = timedelta(seconds=1800)


def check_timeout(timeout: Any, strategy: object) -> timedelta | None:
    """Return how long a collective waits for the other processes.

    Args:
        timeout: What the user passed.
        strategy: To which strategy.

    Raises:
        TypeError: It is no duration.
    """
    if timeout is None or isinstance(timeout, timedelta):
        return timeout
    raise TypeError(
        f"`{type(strategy).__name__}(timeout={timeout!r})` is no duration. Pass a `datetime.timedelta`, e.g."
        " `timedelta(minutes=30)`."
    )


@dataclass(slots=True)
class Membership:
    """The world that this process is in."""

    default: Any
    control: Any
    """Takes tensors on the CPU: the default group itself if that does."""
    is_ours: bool
    """Whether the group was made here, and so is to be destroyed here."""
    meeting_point: tuple[str, int] | None
    """Where the ranks find each other, if the group was made by someone else."""
    store: Any
    by_backend: dict[str, Any]
    """Further groups of all ranks, for strategies that need another backend."""
    meshes: dict[Any, Any] = field(default_factory=dict)
    """Arrangements of the ranks that runs of this process have used, as each has groups of its own."""
    num_meetings: int = 0
    attempt: str = ""
    """Under torchrun, a name that the processes of this attempt have in common, and no other attempt has."""

    def meet(self, world_size: int, timeout_s: float) -> bool:
        """Wait for all ranks, but not for ever, and past the groups, in which others may be waiting; tell if all came.

        Args:
            world_size: Number of ranks.
            timeout_s: How long to wait, in seconds.
        """
        store = dist.distributed_c10d._get_default_store()
        self.num_meetings += 1
        key = f"fulmen/meeting/{self.num_meetings}"
        store.add(key, 1)
        deadline = time.monotonic() + timeout_s
        while store.add(key, 0) < world_size:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def group_for(self, device: torch.device, backend: str | None) -> Any:
        """Return a group of all ranks that takes tensors of a device.

        Args:
            device: Where the tensors are.
            backend: The backend that is asked for; `None` if any will do.
        """
        offered = _backends_of(self.default)
        own = offered.get(device.type)
        if own is not None and (backend is None or backend == own or _named(backend).get(device.type) == own):
            return self.default
        backend = backend or dist.get_default_backend_for_device(device)
        if backend not in self.by_backend:
            self.by_backend[backend] = dist.new_group(backend=backend)
        return self.by_backend[backend]


_memberships: list[Membership] = []  # none or one


def current_membership() -> Membership | None:
    """Return the world that this process is in; `None` if there is none."""
    if _memberships and is_group_initialized() and _memberships[0].default is dist.group.WORLD:
        return _memberships[0]
    return None


def join_group(
    *, backend: str, address: str, port: int, rank: int, world_size: int, timeout: timedelta, device: torch.device
) -> Membership:
    """Become part of the world; a group that is there already, of whomever, is used as it is.

    Args:
        backend: What moves the data.
        address: Host of rank 0.
        port: A port that is free there.
        rank: Number of this process.
        world_size: Number of processes.
        timeout: How long a collective waits for the others.
        device: The device of this process.

    Raises:
        RuntimeError: There is a group, and it has another size.
    """
    membership = current_membership()
    if membership is None:
        attempt = ""
        is_ours = not is_group_initialized()
        if is_ours:
            os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
            bound = device if device.index is not None and backend == "nccl" else None
            where: dict[str, Any] = {"init_method": "env://"}
            if store_outlives_processes():
                attempt, where["store"] = _store_of_attempt(address, port, rank, world_size, timeout)
                del where["init_method"]
            dist.init_process_group(
                backend, rank=rank, world_size=world_size, timeout=timeout, device_id=bound, **where
            )
            atexit.register(leave_group)
            Finalize(None, leave_group, exitpriority=0)  # in workers of `multiprocessing`, which have no `atexit`
        _refuse_other_size(world_size)
        membership = _enter(timeout, is_ours=is_ours)
        membership.attempt = attempt
    _refuse_other_size(world_size)
    return membership


def _store_of_attempt(address: str, port: int, rank: int, world_size: int, timeout: timedelta) -> tuple[str, Any]:
    """Return a name for this attempt, and torchrun's store without what earlier attempts have left there."""
    store = TCPStore(address, port, is_master=False, timeout=timeout)
    deadline = time.monotonic() + timeout.total_seconds()

    def wait() -> None:
        if time.monotonic() > deadline:
            raise dist.DistNetworkError(
                f"Rank {rank} of {world_size} did not meet the others at {address}:{port} within {timeout}."
            )
        time.sleep(0.01)

    attempt = agree_on_attempt(store, rank=rank, world_size=world_size, what="group", wait=wait)
    return attempt, PrefixStore(f"fulmen/{attempt}", store)


def leave_group() -> None:
    """Destroy the group if it was made here; nothing if there is none."""
    membership = current_membership()
    _memberships.clear()
    if membership is not None and membership.is_ours:
        dist.destroy_process_group()


def _enter(timeout: timedelta, *, is_ours: bool) -> Membership:
    world = dist.group.WORLD
    control = world
    if _backends_of(world).get("cpu") is None:
        control = dist.new_group(backend="gloo", timeout=timeout)
    is_imagined = dist.get_backend(world) == "fake"  # of a plan: there is nobody to meet
    meeting_point, store = (None, None) if is_ours or is_imagined else _open_store(control)
    _memberships[:] = [Membership(world, control, is_ours, meeting_point, store, {})]
    return _memberships[0]


def _open_store(control: Any) -> tuple[tuple[str, int], Any]:
    """Open a store on rank 0 and tell all where: how others made the group, e.g. by a file, is unknown."""
    store, place = None, [("", 0)]
    if dist.get_rank() == 0:
        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        place = [(host, store.port)]
    dist.broadcast_object_list(place, src=0, group=control)
    return place[0], store


def _refuse_other_size(world_size: int) -> None:
    actual = dist.get_world_size()
    if actual != world_size:
        raise RuntimeError(
            f"This strategy is for {world_size} processes, but this process is already in a process group of {actual}."
            " A process can't change its world: use the same `devices` and `num_nodes` for all runs of a program, or"
            " `strategy='ddp_spawn'`, which makes new processes for each run."
        )


def _backends_of(group: Any) -> dict[str, str]:
    return _named(dist.get_backend_config(group))


def _named(config: str) -> dict[str, str]:
    """`"cpu:gloo,cuda:nccl"` as a dictionary; empty for a plain name."""
    return dict(entry.split(":", 1) for entry in config.split(",") if ":" in entry)
