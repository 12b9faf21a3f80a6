"""Divide the loaders of a run among its processes."""

from __future__ import annotations

from math import inf
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from fulmen.data.combined_loader import CombinedLoader, length_of
from fulmen.data.rebuild import rebuild
from fulmen.data.sampler import (
    BatchShard,
    EvalBatchShard,
    EvalShard,
    IndexRecordingBatchSampler,
    TrainBatchShard,
    TrainShard,
)
from fulmen.data.shard import Ranks, Shard, order_of
from fulmen.engine.iterable_datasets import is_sharded, shard_of_dataset
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.warnings import PossibleUserWarning

__all__ = ["end_together", "is_divided", "shard_for_evaluation", "shard_for_fabric", "shard_for_training", "whole"]


def shard_for_training(loader: Any, shard: Shard, *, name: str) -> Any:
    """Return a loader of every `num_replicas`-th sample of what the user's sampler draws, equally many on all ranks.

    Args:
        loader: Any loader. One that is divided already, and one that is no `DataLoader`, is returned as it is.
        shard: Which part is ours.
        name: What the user calls the loader, e.g. `"train_dataloader"`, for messages.

    Raises:
        MisconfigurationException: It reads from an `IterableDataset` that cannot be divided; or it is of a class that
            cannot be made again.
        TypeError: Its sampler has no length.
    """
    return _shard(loader, shard, name=name, samples=TrainShard, batches=TrainBatchShard)


def shard_for_evaluation(loader: Any, shard: Shard, *, name: str) -> Any:
    """Return a loader of every `num_replicas`-th batch, each seen on one rank only.

    Args:
        loader: Any loader. One that is divided already, and one that is no `DataLoader`, is returned as it is.
        shard: Which part is ours.
        name: What the user calls the loader, e.g. `"val_dataloader"`, for messages.

    Raises:
        MisconfigurationException: As for `shard_for_training`.
        TypeError: Likewise.
    """
    return _shard(loader, shard, name=name, samples=EvalShard, batches=EvalBatchShard)


def shard_for_fabric(loader: Any, ranks: Ranks) -> Any:
    """Return a loader of this rank's part for a loop that the user writes: as for training.

    In every pass over it the ranks agree on the order of a sampler that shuffles, so all of them have to make it.

    Args:
        loader: The user's `DataLoader`.
        ranks: The processes.

    Raises:
        ValueError: It reads from an `IterableDataset` that cannot be divided; or it is of a class that cannot be made
            again.
        TypeError: Its sampler has no length.
    """
    if ranks.world_size == 1:
        return loader
    try:
        divided = shard_for_training(whole(loader), Shard.of(ranks), name="dataloader")
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    order = order_of(divided)
    if order is not None:
        order.agree_on_every_pass(ranks)
    return divided


def _shard(
    loader: Any, shard: Shard, *, name: str, samples: type[TrainShard | EvalShard], batches: type[BatchShard]
) -> Any:
    if not isinstance(loader, DataLoader):
        _warn_if_repeated(loader, name)
        return loader
    if isinstance(loader.dataset, IterableDataset):
        if is_sharded(loader.dataset) or getattr(loader, "fulmen_sharded", False):
            return loader
        dataset = shard_of_dataset(loader.dataset, shard, name=name)
        return loader if dataset is loader.dataset else rebuild(loader, dataset=dataset)
    if is_divided(loader):
        return loader
    batch_sampler: Any = loader.batch_sampler
    dataset = loader.dataset
    if loader.batch_size is not None:
        sampler = samples(loader.sampler, dataset, shard, batch_size=loader.batch_size, drop_last=loader.drop_last)
        return rebuild(loader, sampler=sampler)
    if batch_sampler is None:  # every sample is a batch
        return rebuild(loader, sampler=samples(loader.sampler, dataset, shard))
    recorded = isinstance(batch_sampler, IndexRecordingBatchSampler)
    inner: Any = batch_sampler.batch_sampler if recorded else batch_sampler
    if type(inner) is BatchSampler:
        size, drop_last = inner.batch_size, inner.drop_last
        inner = BatchSampler(
            samples(inner.sampler, dataset, shard, batch_size=size, drop_last=drop_last), size, drop_last
        )
    else:
        inner = batches(inner, shard)
    return rebuild(loader, batch_sampler=IndexRecordingBatchSampler(inner) if recorded else inner)


def is_divided(loader: DataLoader[Any]) -> bool:
    """Tell whether each rank has its own part of a loader's samples already, by a `DistributedSampler` or its like.

    Args:
        loader: A loader over a map-style dataset.
    """
    batch_sampler = loader.batch_sampler
    inside = getattr(batch_sampler, "sampler", None)
    candidates = (loader.sampler, inside) if loader.batch_size is not None else (batch_sampler, inside)
    if batch_sampler is None:
        candidates = (loader.sampler, None)
    return any(
        isinstance(each, DistributedSampler)
        or (isinstance(getattr(each, "num_replicas", None), int) and isinstance(getattr(each, "rank", None), int))
        for each in candidates
    )


def whole(loader: Any) -> Any:
    """Return the loader as it was before one of the functions above divided it.

    Args:
        loader: Any loader; one that they have not made is returned as it is.
    """
    if not isinstance(loader, DataLoader):
        return loader
    batch_sampler: Any = loader.batch_sampler
    if isinstance(loader.sampler, (TrainShard, EvalShard)):
        return rebuild(loader, sampler=loader.sampler.sampler)
    if isinstance(batch_sampler, IndexRecordingBatchSampler):
        batch_sampler = batch_sampler.batch_sampler
    if isinstance(batch_sampler, BatchShard):
        return rebuild(loader, batch_sampler=batch_sampler.batch_sampler)
    if type(batch_sampler) is BatchSampler and isinstance(batch_sampler.sampler, (TrainShard, EvalShard)):
        inner = batch_sampler.sampler.sampler
        return rebuild(loader, batch_sampler=BatchSampler(inner, batch_sampler.batch_size, batch_sampler.drop_last))
    return loader


def _warn_if_repeated(loader: Any, name: str) -> None:
    if getattr(loader, "fulmen_sharded", False) or is_sharded(loader):
        return
    rank_zero_warn(
        f"The '{name}' is a `{type(loader).__name__}`, of which every process reads all batches, unless it divides them"
        " itself. Pass a `DataLoader`, which is divided for you; or let it give each process its own part, and set"
        " `fulmen_sharded = True` on it to say so.",
        category=PossibleUserWarning,
    )


# ---- as many batches on all ranks


def end_together(combined: CombinedLoader, ranks: Ranks, *, name: str, allow_zero_length: bool = False) -> None:
    """Limit each loader to the shortest of its kind on all ranks; every rank must call it.

    Args:
        combined: The loaders of this rank; their `limits` are set where needed.
        ranks: The processes.
        name: What the user calls them, for messages.
        allow_zero_length: Accept that only some ranks have nothing to read; then nobody reads from that loader.

    Raises:
        RuntimeError: Some ranks have nothing to read, others do, and this is not allowed. Or some have a loader with a
            length and others one without.
    """
    by_rank = ranks.gather_objects([length_of(each) for each in combined.flattened])
    if len({len(lengths) for lengths in by_rank}) > 1:
        raise RuntimeError(
            f"The ranks have different numbers of loaders in the `{name}`: {[len(lengths) for lengths in by_rank]}, by"
            " rank, so they would wait for each other. Return the same structure of loaders on every rank."
        )
    limits: list[int | float] = list(combined.limits or [inf] * len(combined.flattened))
    uneven = False
    for index, lengths in enumerate(zip(*by_rank, strict=True)):
        if len(set(lengths)) == 1:
            continue
        _check_lengths(lengths, name=name, allow_zero_length=allow_zero_length)
        uneven = True
        limits[index] = min(limits[index], *lengths)
    if uneven:
        combined.limits = limits


def _check_lengths(lengths: tuple[int | float, ...], *, name: str, allow_zero_length: bool) -> None:
    listed = ", ".join(
        f"rank {rank}: {'no length' if length == inf else length}" for rank, length in enumerate(lengths)
    )
    if inf in lengths:
        raise RuntimeError(
            f"The `{name}` has a length on some ranks only ({listed}), so they cannot end together."
            " Give it a `__len__` on every rank, or on none."
        )
    if 0 in lengths and not allow_zero_length:
        raise RuntimeError(
            f"The `{name}` has no batches on some ranks ({listed}), so the others would wait for them. Give each rank"
            " the same number of batches, or set `allow_zero_length_dataloader_with_multiple_devices = True` on the"
            " module or datamodule."
        )
    rank_zero_warn(
        f"The `{name}` has different numbers of batches on the ranks ({listed}). All ranks take the smallest number,"
        f" {min(lengths)}, because they can only step together; the rest is not used. Divide the data evenly if every"
        " sample has to be seen."
    )
