"""What `Fabric.setup_dataloaders` returns: a loader whose batches are on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from fulmen.data.sampler import set_sampler_epoch
from fulmen.engine.loaders import seed_workers, shard_for_fabric
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.tree import move_data_to_device

__all__ = ["wrap_dataloader"]


class _FabricDataLoader:
    """A loader that moves its batches and tells its samplers the epoch; other attributes are those of the loader.

    Args:
        dataloader: The loader.
        move: Brings a batch to the device; `None` where batches can be used as they are.
    """

    def __init__(self, dataloader: Any, move: Callable[[Any], Any] | None = None) -> None:
        self.dataloader = dataloader
        self._move = move
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.dataloader)

    def __iter__(self) -> Iterator[Any]:
        set_sampler_epoch(self.dataloader, self._epoch)
        self._epoch += 1
        batches = iter(self.dataloader)
        return batches if self._move is None else map(self._move, batches)

    def __getattr__(self, name: str) -> Any:
        if name == "dataloader":  # being copied or unpickled
            raise AttributeError(name)
        return getattr(self.dataloader, name)


def wrap_dataloader(
    dataloader: DataLoader[Any], strategy: Strategy, *, use_distributed_sampler: bool, move_to_device: bool
) -> _FabricDataLoader:
    """Prepare a loader for this process of a strategy.

    Args:
        dataloader: The user's loader.
        strategy: The strategy.
        use_distributed_sampler: Give each process its part of the data.
        move_to_device: Move the batches.
    """
    if use_distributed_sampler:
        dataloader = shard_for_fabric(dataloader, strategy)
    seed_workers(dataloader, rank=strategy.global_rank)
    processed = strategy.process_dataloader(dataloader)
    return _FabricDataLoader(processed, _mover(strategy) if move_to_device else None)


def _mover(strategy: Strategy) -> Callable[[Any], Any] | None:
    device = strategy.root_device
    if type(strategy).batch_to_device is not Strategy.batch_to_device:
        return partial(strategy.batch_to_device, device=device)
    other_devices = torch.cuda.is_available() or torch.backends.mps.is_available()
    if device.type == "cpu" and not other_devices:
        return None
    return partial(move_data_to_device, device=device)
