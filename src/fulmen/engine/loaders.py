"""Check the loaders of a run, count their batches, and change them where the run needs it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from functools import partial
from math import inf
from numbers import Integral
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from fulmen.data.combined_loader import CombinedLoader, length_of
from fulmen.data.rebuild import rebuild, rebuild_batch_sampler
from fulmen.data.sampler import IndexRecordingBatchSampler
from fulmen.data.shard import Ranks, Shard
from fulmen.engine.sharding import end_together, shard_for_evaluation, shard_for_fabric, shard_for_training, whole
from fulmen.utilities.data import has_iterable_dataset, suggested_max_num_workers
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import pl_worker_init_function
from fulmen.utilities.warnings import PossibleUserWarning

__all__ = [
    "check_length",
    "combine",
    "eval_num_batches",
    "num_batches",
    "parse_limit",
    "prepare_eval_loaders",
    "prepare_predict_loader",
    "prepare_train_loaders",
    "seed_workers",
    "seen_batch_indices",
    "sequential_for_overfit",
    "shard_for_fabric",
    "warn_if_logging_is_sparse",
    "warn_worker_count",
]


# ---- how many batches


def parse_limit(value: int | float, name: str) -> int | float:
    """Check a limit on batches and return it as a count (int) or a fraction (float).

    Args:
        value: An int is a count, a float in [0, 1] a fraction, a whole float above 1 a count.
        name: The Trainer's argument, for the message.

    Returns:
        The limit; 2.0 becomes 2.

    Raises:
        MisconfigurationException: The value is none of these.
        TypeError: It is not a number.
    """
    if isinstance(value, Integral):
        value = int(value)  # NumPy's integers, too
    if not isinstance(value, (int, float)):
        raise TypeError(
            f"`Trainer({name}={value!r})` is not a number, but `{type(value).__name__}`."
            " Pass an int for a number of batches, or a float from 0.0 to 1.0 for a fraction."
        )
    if isinstance(value, int) and value >= 0:
        return int(value)
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    if isinstance(value, float) and value > 1 and value.is_integer():
        return int(value)
    raise MisconfigurationException(
        f"`Trainer({name}={value!r})` has to be an int of at least 0 (batches) or a float in [0.0, 1.0] (fraction)."
        f" Pass `{name}=10` for 10 batches, or `{name}=0.1` for a tenth of them."
    )


def num_batches(loader: Any, limit: int | float, *, name: str) -> int | float:
    """Return how many batches of a loader a run takes.

    Args:
        loader: A `CombinedLoader`, or one loader.
        limit: A count (int) or a fraction (float); see `parse_limit`.
        name: The Trainer's argument, e.g. `"limit_train_batches"`, for the message.

    Returns:
        The number of batches, `inf` if the loader has no length and there is no limit.

    Raises:
        MisconfigurationException: The fraction is of an unknown length, or of so few batches that none remains.
    """
    limit = parse_limit(limit, name)
    total = loader.total_batches() if isinstance(loader, CombinedLoader) else length_of(loader)
    if isinstance(limit, int):
        return min(total, limit)
    if limit in (0.0, 1.0):
        return total if limit else 0
    stage = name.removeprefix("limit_").removesuffix("_batches")
    if total == inf:
        raise MisconfigurationException(
            f"`Trainer({name}={limit!r})` is a fraction, but the {stage} dataloader has no length (is it over an"
            f" `IterableDataset`?): `{name}` must be `1.0` or an int. An int specifies the number of batches to use."
        )
    taken = int(total * limit)
    if taken == 0 and total > 0:
        raise MisconfigurationException(
            f"You requested to use {limit} of the `{stage}_dataloader`, but {limit} * {total} < 1, so nothing would be"
            f" left. Please increase the `{name}` argument. Try at least `{name}={1 / total}`."
        )
    return taken


def eval_num_batches(loader: CombinedLoader, limit: int | float, *, name: str) -> list[int | float]:
    """Return how many batches a run takes from each loader of an evaluation; in every mode one number per loader.

    Args:
        loader: The combined loaders.
        limit: A count (int) or a fraction (float); see `parse_limit`.
        name: The Trainer's argument, e.g. `"limit_val_batches"`, for the message.

    Raises:
        MisconfigurationException: As in `num_batches`.
    """
    counts = [num_batches(each, limit, name=name) for each in loader.flattened]
    return [min(count, most) for count, most in zip(counts, loader.lengths(), strict=True)]


def warn_if_logging_is_sparse(num_train_batches: int | float, log_every_n_steps: int) -> None:
    """Warn if an epoch has fewer batches than lie between two rows of the log. Call it if there is a logger.

    Args:
        num_train_batches: Batches of an epoch.
        log_every_n_steps: Steps between two rows; 0 logs none.
    """
    if log_every_n_steps > num_train_batches > 0:
        rank_zero_warn(
            f"The number of training batches ({num_train_batches}) is smaller than the logging interval"
            f" Trainer(log_every_n_steps={log_every_n_steps}), so most epochs leave no row of training metrics. Set a"
            " lower value for log_every_n_steps if you want to see logs for the training epoch.",
            category=PossibleUserWarning,
        )


# ---- which loaders


def combine(loaders: Any, *, mode: str, origin: str) -> CombinedLoader:
    """Return the loaders as a `CombinedLoader`, after checking that they can be iterated.

    Args:
        loaders: A loader, nested collections of loaders, or a `CombinedLoader`, which keeps its mode.
        mode: Mode for what is not a `CombinedLoader` yet.
        origin: Where the loaders came from, for the message, e.g. `"Trainer.fit(train_dataloaders=...)"`.

    Raises:
        TypeError: Something in there is no iterable.
    """
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, mode)
    for loader in combined.flattened:
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise TypeError(
                f"An invalid dataloader was passed to `{origin}`. Found {loader!r}, which cannot be iterated."
                " Pass a `DataLoader`, another iterable, or a list, tuple or dict of them."
            )
    return combined


def prepare_train_loaders(
    loader: CombinedLoader,
    *,
    overfit: bool,
    ranks: Ranks | None = None,
    shard: bool = True,
    allow_zero_length: bool = False,
    local_world_size: int = 1,
) -> None:
    """Make training loaders ready: `loader.flattened` is replaced where the run needs other loaders.

    Args:
        loader: The combined loaders.
        overfit: `overfit_batches` is set, so that every epoch must see the same batches.
        ranks: The processes of the run; all of them must call this. `None`: only this one.
        shard: Divide the samples among several processes.
        allow_zero_length: Accept a loader that has batches on some ranks only.
        local_world_size: Number of processes on this machine.

    Raises:
        MisconfigurationException: A loader cannot be divided, or not be made again.
        RuntimeError: The ranks cannot end together.
        TypeError: A sampler has no length, or a batch sampler cannot be made again.
    """
    _prepare(loader, stage="train", overfit=overfit, ranks=ranks, shard=shard, local_world_size=local_world_size)
    if ranks is not None and ranks.world_size > 1:
        end_together(loader, ranks, name="train_dataloader", allow_zero_length=allow_zero_length)


def prepare_eval_loaders(
    loader: CombinedLoader,
    *,
    stage: str,
    overfit: bool = False,
    ranks: Ranks | None = None,
    shard: bool = True,
    local_world_size: int = 1,
) -> None:
    """Make evaluation loaders ready: `loader.flattened` is replaced where the run needs other loaders.

    Args:
        loader: The combined loaders.
        stage: `"val"`, `"test"` or `"predict"`; for `"predict"` the loaders record the indices of their batches.
        overfit: `overfit_batches` is set.
        ranks: The processes of the run. `None`: only this one.
        shard: Divide the batches among several processes.
        local_world_size: Number of processes on this machine.

    Raises:
        MisconfigurationException: A loader cannot be divided, or not be made again.
        TypeError: A sampler has no length, or a batch sampler cannot be made again.
    """
    _prepare(loader, stage=stage, overfit=overfit, ranks=ranks, shard=shard, local_world_size=local_world_size)
    for each in loader.flattened:
        if _is_shuffled(each):
            rank_zero_warn(
                f"Your `{stage}_dataloader`'s sampler has shuffling enabled, so its batches differ from epoch to epoch;"
                " it is strongly recommended that you turn shuffling off for val/test dataloaders.",
                category=PossibleUserWarning,
            )


def _prepare(
    loader: CombinedLoader, *, stage: str, overfit: bool, ranks: Ranks | None, shard: bool, local_world_size: int
) -> None:
    name = f"{stage}_dataloader"
    prepared = loader.flattened
    part = Shard.of(ranks) if ranks is not None and ranks.world_size > 1 else None
    if part is not None:  # a loader of an earlier run may come back
        prepared = [whole(each) for each in prepared]
    if overfit:
        prepared = [sequential_for_overfit(each, name=stage) for each in prepared]
    if stage == "predict":
        prepared = [prepare_predict_loader(each) for each in prepared]
    undivided = prepared
    if part is not None and shard:
        divide = shard_for_training if stage == "train" else shard_for_evaluation
        prepared = [divide(each, part, name=name) for each in prepared]
    loader.flattened = prepared
    for each in prepared if stage == "train" else undivided:  # in an evaluation, some ranks may well have nothing
        check_length(each, name=name)
    for each in prepared:
        seed_workers(each, rank=0 if ranks is None else Shard.of(ranks).rank)
        warn_worker_count(each, name=name, local_world_size=local_world_size)


def check_length(loader: Any, *, name: str) -> None:
    """Warn where the length of a loader is zero or not to be trusted.

    Args:
        loader: The loader.
        name: What the user calls it, e.g. `"train_dataloader"`.
    """
    length = length_of(loader)
    if length == 0:
        rank_zero_warn(
            f"Total length of `{type(loader).__name__}` across ranks is zero, so nothing is done with the `{name}`."
            " Please make sure this was your intention."
        )
    if length < inf and has_iterable_dataset(loader):
        rank_zero_warn(
            f"Your `IterableDataset` of the `{name}` has `__len__` defined. In combination with multi-process data"
            " loading (when num_workers > 1), `__len__` could be inaccurate if each worker is not configured"
            " independently to avoid having duplicate data."
        )


# ---- samplers


def sequential_for_overfit(loader: Any, *, name: str) -> Any:
    """Return a loader that gives the same batches in every epoch.

    Args:
        loader: Any loader; it is returned as it is unless it is a `DataLoader` with a sampler that may shuffle.
        name: The stage, `"train"` or `"val"`, for the warning.

    Returns:
        The loader, or one with a `SequentialSampler`; a batch sampler of the user gets it inside.

    Raises:
        MisconfigurationException: The loader is of a class that cannot be made again.
        TypeError: Likewise its batch sampler.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    inner = getattr(loader.batch_sampler, "sampler", None)  # the loader's own sampler is unused beside a batch sampler
    sampler = loader.sampler if inner is None else inner
    if isinstance(sampler, SequentialSampler) or (isinstance(sampler, DistributedSampler) and not sampler.shuffle):
        return loader
    in_order: Any = SequentialSampler(loader.dataset)  # type: ignore[arg-type]  # map-style is sized here
    if type(sampler) is DistributedSampler:  # of the user: each rank keeps its own part
        in_order = DistributedSampler(
            loader.dataset, sampler.num_replicas, sampler.rank, shuffle=False, drop_last=sampler.drop_last
        )
    rank_zero_warn(
        f"You requested to overfit but enabled {name} dataloader shuffling, with which every epoch would see other"
        f" batches. We are turning off the {name} dataloader shuffling for you."
    )
    return rebuild(loader, sampler=in_order)


def prepare_predict_loader(loader: Any) -> Any:
    """Return a loader that gives every sample and records the dataset indices of its batches.

    Args:
        loader: Any loader; what is not a `DataLoader` is returned as it is.

    Returns:
        The loader made again with `drop_last=False` and an `IndexRecordingBatchSampler`. One over an `IterableDataset`
        or without batching has no indices to record.

    Raises:
        MisconfigurationException: The loader is of a class that cannot be made again.
        TypeError: Likewise its batch sampler.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.batch_sampler, IndexRecordingBatchSampler):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        return rebuild(loader, drop_last=False) if loader.drop_last else loader
    batch_sampler = loader.batch_sampler
    if batch_sampler is None:
        return loader
    if type(batch_sampler) is BatchSampler:
        batch_sampler = BatchSampler(batch_sampler.sampler, batch_sampler.batch_size, drop_last=False)
    elif getattr(batch_sampler, "drop_last", False):
        batch_sampler = rebuild_batch_sampler(batch_sampler, drop_last=False)
    elif not isinstance(batch_sampler, BatchSampler):
        rank_zero_warn(
            f"You are using a custom batch sampler `{type(batch_sampler).__qualname__}` for prediction, which has no"
            " `drop_last` that could be set to False to ensure all samples are returned."
            " Make sure your sampler is configured correctly to return all indices.",
            category=PossibleUserWarning,
        )
    return rebuild(loader, batch_sampler=IndexRecordingBatchSampler(batch_sampler))


def seen_batch_indices(loader: Any, batch_idx: int) -> list[int]:
    """Return the dataset indices of a batch of a loader from `prepare_predict_loader`; empty if it records none.

    Args:
        loader: The loader.
        batch_idx: Index of the batch in the current pass.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(batch_sampler, IndexRecordingBatchSampler):
        return []
    return batch_sampler.seen_batch_indices[batch_idx]


def _is_shuffled(loader: Any) -> bool:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    return isinstance(sampler, RandomSampler) or (isinstance(sampler, DistributedSampler) and sampler.shuffle)


# ---- workers


def seed_workers(loader: Any, *, rank: int) -> None:
    """Give the workers of a loader seeds that differ between workers and ranks, if `PL_SEED_WORKERS` asks for it.

    Args:
        loader: The loader; a `worker_init_fn` that it has already is kept.
        rank: Data-parallel rank of this process.
    """
    if int(os.environ.get("PL_SEED_WORKERS", "0")) and isinstance(loader, DataLoader) and loader.worker_init_fn is None:
        loader.worker_init_fn = partial(pl_worker_init_function, rank=rank)


def warn_worker_count(loader: Any, *, name: str, local_world_size: int = 1) -> None:
    """Warn about a `DataLoader` with fewer workers than this machine could run, or that starts slow ones every epoch.

    Args:
        loader: Any loader.
        name: What the user calls it, e.g. `"train_dataloader"`.
        local_world_size: Number of processes on this machine.
    """
    if not isinstance(loader, DataLoader):
        return
    most = suggested_max_num_workers(local_world_size)
    if loader.num_workers < 2 <= most:
        rank_zero_warn(
            f"The '{name}' does not have many workers which may be a bottleneck: the next batches are not loaded while"
            " the model runs. Consider increasing the value of the `num_workers` argument` to"
            f" `num_workers={most}` in the `DataLoader` to improve performance.",
            category=PossibleUserWarning,
        )
    if loader.num_workers > 0 and not loader.persistent_workers and _start_method(loader) == "spawn":
        rank_zero_warn(
            f"The workers of the '{name}' are spawned anew in every epoch, which takes long."
            f" Consider setting `persistent_workers=True` in '{name}' to speed up the dataloader worker initialization."
        )


def _start_method(loader: DataLoader[Any]) -> str | None:
    context = loader.multiprocessing_context
    if context is None:
        return multiprocessing.get_start_method(allow_none=True)
    return str(context.get_start_method())
