"""Sizes of datasets and loaders, and how many workers they should have."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset

from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.tree import BType as BType
from fulmen.utilities.tree import extract_batch_size as extract_batch_size

__all__ = [
    "BType",
    "extract_batch_size",
    "has_iterable_dataset",
    "has_len",
    "has_len_all_ranks",
    "sized_len",
    "suggested_max_num_workers",
]


class _Reduces(Protocol):
    """The part of a strategy that is needed here."""

    @property
    def root_device(self) -> torch.device: ...

    def reduce(self, tensor: Any, *, reduce_op: str) -> Any: ...


def sized_len(dataloader: object) -> int | None:
    """Return the length of something, or `None` if it has none.

    Args:
        dataloader: Any object. A loader over an `IterableDataset` without length has none.

    Returns:
        The length.
    """
    try:
        return len(dataloader)  # type: ignore[arg-type]  # the question is whether it is allowed
    except (TypeError, NotImplementedError):
        return None


def has_iterable_dataset(dataloader: object) -> bool:
    """Tell whether a loader reads from an `IterableDataset`."""
    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def has_len(dataloader: Iterable[Any]) -> bool:
    """Tell whether a loader knows its length; warn where the length is suspicious.

    Args:
        dataloader: A DataLoader or another iterable.

    Returns:
        True if `len(dataloader)` works, also if it is 0.
    """
    length = sized_len(dataloader)
    if length is None:
        return False
    if length == 0:
        rank_zero_warn(
            f"`{type(dataloader).__name__}` returned 0 length, so nothing is done with it."
            " Make sure this was your intention.",
            stacklevel=5,
        )
    if has_iterable_dataset(dataloader):
        rank_zero_warn(_ITERABLE_WITH_LENGTH, stacklevel=5)
    return True


def has_len_all_ranks(
    dataloader: object, strategy: _Reduces, allow_zero_length_dataloader_with_multiple_devices: bool = False
) -> bool:
    """Tell whether a loader knows its length on every rank; all ranks must call it.

    Args:
        dataloader: The loader of this rank.
        strategy: The strategy whose ranks are asked.
        allow_zero_length_dataloader_with_multiple_devices: Accept that only some ranks have nothing to read.

    Returns:
        True if the length is known.

    Raises:
        RuntimeError: Some ranks have nothing to read, others do, and this is not allowed.
    """
    length = sized_len(dataloader)
    if length is None:
        return False  # the same kind of loader on every rank
    total = int(strategy.reduce(torch.tensor(length, device=strategy.root_device), reduce_op="sum"))
    if total == 0:
        rank_zero_warn(
            f"Total length of `{type(dataloader).__name__}` across ranks is zero, so nothing is done with it."
            " Make sure this was your intention.",
            stacklevel=5,
        )
    elif length == 0 and not allow_zero_length_dataloader_with_multiple_devices:
        raise RuntimeError(
            f"`{type(dataloader).__name__}` has no batches on this rank, but {total} on all ranks, so the ranks would"
            " wait for each other. Give each rank the same number of batches, or set"
            " `allow_zero_length_dataloader_with_multiple_devices = True` on the module or datamodule."
        )
    if has_iterable_dataset(dataloader):
        rank_zero_warn(_ITERABLE_WITH_LENGTH, stacklevel=5)
    return True


def suggested_max_num_workers(local_world_size: int) -> int:
    """Suggest how many workers a loader should have at most.

    Args:
        local_world_size: Number of processes on this machine, which share its cores.

    Returns:
        The cores of one process less one for itself, at least 1.

    Raises:
        ValueError: There are no processes.
    """
    if local_world_size < 1:
        raise ValueError(
            f"`local_world_size` should be >= 1, got {local_world_size}: the calling process counts too."
            " Pass 1 or more."
        )
    return max(1, _num_cores() // local_world_size - 1)


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_ITERABLE_WITH_LENGTH = (
    "Your `IterableDataset` has `__len__` defined. With more than one worker its length is right only if each worker"
    " reads its own share: configure them by `torch.utils.data.get_worker_info()`."
)
