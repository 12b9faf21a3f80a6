"""Imported by the server of forks: saves once, so that what torch imports late is there in each process it makes."""

from __future__ import annotations

import tempfile

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from fulmen.plugins.io.distributed_io import ShardedCheckpoint, save_sharded


def save_once() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        weight = distribute_tensor(torch.zeros(3, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        weight.to_local().fill_(1.0)
        save_sharded({"state_dict": {"w": weight}}, f"{folder}/x.ckpt")
        ShardedCheckpoint(f"{folder}/x.ckpt").read_whole()
        dist.destroy_process_group()


save_once()
