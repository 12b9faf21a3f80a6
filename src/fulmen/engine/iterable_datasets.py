"""Iterable datasets on several processes: which divide themselves, which we can divide, and which repeat themselves."""

from __future__ import annotations

import inspect
from typing import Any

from torch.utils.data import ChainDataset, IterDataPipe

from fulmen.data.shard import Shard
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require

__all__ = ["is_sharded", "shard_of_dataset"]

# Packages whose datasets and loaders look at the rank themselves, or refuse several processes unless told how.
_LOOK_AT_THE_RANK = ("litdata", "streaming", "torchdata", "webdataset", "nvidia")

_HOW_TO_SHARD = """\
Divide it, for instance with a method `set_shard`, which is called once per process before its first pass:

    class Lines(IterableDataset):
        def set_shard(self, rank: int, num_replicas: int) -> None:
            self.rank, self.num_replicas = rank, num_replicas

        def __iter__(self):
            yield from itertools.islice(self.read(), self.rank, None, self.num_replicas)

Or, if each process gets its own samples already, say so by `fulmen_sharded = True` on the dataset. With
`use_distributed_sampler=False` no loader is looked at."""


def is_sharded(dataset: Any) -> bool:
    """Tell whether an iterable dataset is known to give each process its own samples.

    That is so if it has `fulmen_sharded = True`; if it is one of Hugging Face that `split_dataset_by_node` made, a
    pipe with a sharding filter, or of a package that looks at the rank; or a chain of such datasets.

    Args:
        dataset: An iterable dataset, or another iterable.
    """
    if getattr(dataset, "fulmen_sharded", False) or getattr(dataset, "_distributed", None) is not None:
        return True
    if isinstance(dataset, ChainDataset):
        return all(is_sharded(each) for each in dataset.datasets)
    if isinstance(dataset, IterDataPipe) and _has_sharding_filter(dataset):
        return True
    return any(cls.__module__.partition(".")[0] in _LOOK_AT_THE_RANK for cls in type(dataset).__mro__)


def _has_sharding_filter(pipe: Any) -> bool:
    """Whether torch's `DataLoader` will divide a pipe."""
    from torch.utils.data.graph import traverse_dps

    graphs = [traverse_dps(pipe)]
    while graphs:
        for each, inside in graphs.pop().values():
            if callable(getattr(each, "apply_sharding", None)):
                return True
            graphs.append(inside)
    return False


def shard_of_dataset(dataset: Any, shard: Shard, *, name: str) -> Any:
    """Return the part of an iterable dataset that a process reads, by the means that the dataset has.

    Args:
        dataset: The dataset. One with `set_shard(rank, num_replicas)` is told its part; of one with
            `shard(num_shards, index)`, and of one of Hugging Face, another dataset is made.
        shard: Which part is ours.
        name: What the user calls its loader, for the message.

    Raises:
        MisconfigurationException: It offers nothing of that, so each process would read all of it.
    """
    if is_sharded(dataset):
        return dataset
    set_shard = getattr(dataset, "set_shard", None)
    if callable(set_shard):
        set_shard(shard.rank, shard.num_replicas)
        return dataset
    if _is_hugging_face(dataset):
        node = require("datasets.distributed", extra=None, for_="IterableDataset")
        return node.split_dataset_by_node(dataset, rank=shard.rank, world_size=shard.num_replicas)
    if _has_method_shard(dataset):
        return dataset.shard(num_shards=shard.num_replicas, index=shard.rank)
    if isinstance(dataset, ChainDataset):
        return ChainDataset([shard_of_dataset(each, shard, name=name) for each in dataset.datasets])
    raise MisconfigurationException(
        f"The '{name}' reads from `{type(dataset).__name__}`, an iterable dataset. On {shard.num_replicas} processes"
        " each of them would read all of it, so every sample would be seen that many times."
        f" {_HOW_TO_SHARD}"
    )


def _is_hugging_face(dataset: Any) -> bool:
    has_shards = hasattr(dataset, "num_shards") or hasattr(dataset, "n_shards")
    return has_shards and hasattr(dataset, "_distributed")


def _has_method_shard(dataset: Any) -> bool:
    method = getattr(dataset, "shard", None)
    if not callable(method):
        return False
    try:
        return {"num_shards", "index"} <= set(inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return False
