"""Kill one rank of two at random instants while they save sharded checkpoints, and look at what they leave behind.

`python -m tests.plugins.io.kill_while_sharding --kills 50 --mode async` prints what was found, and fails if after any
kill the newest checkpoint is not whole, is older than one that was reported as durable, or the next save leaves a
hidden folder of the dead.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fulmen.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from fulmen.plugins.io.distributed_io import ShardedCheckpoint, save_sharded, verify_folder
from fulmen.utilities.files import ensure_writable
from tests.distributed_harness import free_port, rank_environment
from tests.plugins.io.kill_while_saving import KEPT, Findings, kill_as_asked

MODES = {"sync": TorchCheckpointIO, "async": AsyncCheckpointIO}
_RANKS = 2


def check(path: Path) -> int:
    """Load a checkpoint, see that it is of one piece, and return its number."""
    verify_folder(path)
    content = ShardedCheckpoint(path).read_whole()
    number: int = content["number"]
    wrong = [name for name, weight in content["state_dict"].items() if not bool((weight == number).all())]
    assert not wrong, f"{path}: {wrong} are of another checkpoint than {number}"
    return number


def newest_in(folder: Path) -> int:
    """Return the highest number of a checkpoint in a folder, which must be whole; 0 without one."""
    paths = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem))
    return check(paths[-1]) if paths else 0


def save_on(rank: int, folder: str, mode: str, port: int, first: int, durable: Connection) -> None:
    """Save for ever, on all ranks; rank 0 reports what is durable and removes old ones."""
    os.environ.update(rank_environment(rank, _RANKS, port))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the connection to the other rank breaks, as it should
    torch.set_num_threads(1)
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (_RANKS,))
    weights = {f"w{part}": distribute_tensor(torch.zeros(501, 999), mesh, [Shard(0)]) for part in range(4)}
    files: Any = MODES[mode]()
    number = first
    durable.send(0)
    while True:
        for weight in weights.values():
            weight.to_local().fill_(float(number))
        content = {"pytorch-lightning_version": "2.6.6", "number": number, "state_dict": weights}
        save_sharded(content, f"{folder}/{number}.ckpt", checkpoint_io=files)
        if rank == 0:
            files.publish(partial(durable.send, number))
            if number > KEPT:
                files.remove_checkpoint(f"{folder}/{number - KEPT}.ckpt")
        number += 1


def kill_once(folder: Path, mode: str, first: int, victim: int, delay_s: float) -> tuple[int, bool]:
    """Start both ranks, kill one after some time, and look; return the newest number, and if one was half written."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    durable, port = newest_in(folder), free_port()
    arguments = [(rank, str(folder), mode, port, first, sender) for rank in range(_RANKS)]
    processes = [context.Process(target=save_on, args=each) for each in arguments]
    for process in processes:
        process.start()
    sender.close()
    for _ in processes:
        assert receiver.poll(100), "a saver has not started"
        receiver.recv()
    time.sleep(delay_s)
    processes[victim].kill()
    in_the_middle = any(name.endswith(".tmp") for name in os.listdir(folder))
    for process in processes:
        process.join(1)  # the other one breaks down, or is ended as a launcher does it
        process.kill()
        process.join()
    with suppress(EOFError):
        while receiver.poll():
            durable = max(durable, receiver.recv())
    newest = newest_in(folder)
    assert newest >= durable, f"{durable} was reported as durable, and the newest is {newest}"
    ensure_writable(folder)  # as the next run does first
    assert not [name for name in os.listdir(folder) if not name.endswith(".ckpt")], os.listdir(folder)
    for path in folder.glob("*.ckpt"):
        if check(path) < newest - KEPT:
            TorchCheckpointIO().remove_checkpoint(path)  # the saver was killed before it could
    return newest, in_the_middle


def kill_often(mode: str, kills: int, *, seed: int, folder: Path) -> Findings:
    """Kill ranks one after the other, each run going on in the folder of the one before.

    Args:
        mode: One of `MODES`.
        kills: How many; every second one is of rank 0.
        seed: Of the instants.
        folder: An empty folder.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.plugins.io.warm_shards"])
    draw, findings, newest = random.Random(seed), Findings(), 0
    for kill in range(kills):
        reached, in_the_middle = kill_once(folder, mode, newest + 1, kill % _RANKS, draw.uniform(0, 0.5))
        findings.kills += 1
        findings.saved += reached - newest
        findings.in_the_middle += in_the_middle
        newest = reached
    return findings


if __name__ == "__main__":
    kill_as_asked(kill_often, MODES, kills=50, name="kill_while_sharding", about=__doc__ or "")
