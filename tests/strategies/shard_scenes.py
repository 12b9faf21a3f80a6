"""What tests of shards run on each of two ranks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fulmen.plugins.io.distributed_io import ShardedCheckpoint, load_mapped, save_sharded
from fulmen.strategies.shards import load_into_module, load_optimizer_state, optimizer_state_by_name

__all__ = ["LAYERS", "MIB", "WIDTH", "load_large", "net"]

WIDTH, LAYERS, MIB = 2048, 20, 2**20


def net() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])


class Peak:
    """The most memory of its own that this process had in a block, without what is mapped from files."""

    def __enter__(self) -> Peak:
        self.before = self.most = _own_memory()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._is_over.wait(0.002):
            self.most = max(self.most, _own_memory())

    def __exit__(self, *args: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.grown = (max(self.most, _own_memory()) - self.before) / MIB


def _own_memory() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def sharded_net() -> tuple[nn.Module, torch.optim.Optimizer]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta"):
        module = net()
    for layer in module:
        fully_shard(layer, mesh=mesh)
    module.to_empty(device="cpu")
    return module, torch.optim.AdamW(module.parameters())


def load_large(file: str, folder: str) -> dict[str, Any]:
    """Load weights and optimizer from a whole file, save them in shards, load those; return memory in MiB."""
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    module, optimizer = sharded_net()
    with Peak() as peak:
        content = load_mapped(file)
        load_into_module(module, content["state_dict"])
        load_optimizer_state(module, optimizer, content["optimizer_states"][0])
    found["file"] = peak.grown
    del content
    state = {"state_dict": module.state_dict(), "optimizer_states": [optimizer_state_by_name(module, optimizer)]}
    with Peak() as peak:
        save_sharded({"pytorch-lightning_version": "2.6.6", **state}, folder)
    found["save"] = peak.grown
    del module, optimizer, state
    module, optimizer = sharded_net()
    with Peak() as peak:
        shards = ShardedCheckpoint(folder)
        load_into_module(module, shards["state_dict"])
        load_optimizer_state(module, optimizer, shards["optimizer_states"][0])
    found["folder"] = peak.grown
    found["first"] = float(module[5].weight.detach().to_local()[0, 3])  # type: ignore[index]  # a Sequential
    dist.barrier()
    dist.destroy_process_group()
    return found
