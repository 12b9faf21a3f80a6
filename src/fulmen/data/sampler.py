"""Samplers that the Trainer puts into loaders, and the epoch that samplers are told.

Training: of what a single process would see with batches `num_replicas` times as large, each rank takes every
`num_replicas`-th sample, so that all ranks together see that process' batches. Evaluation: each rank takes every
`num_replicas`-th batch of a single process with batches of the same size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import DistributedSampler, RandomSampler, Sampler, SubsetRandomSampler, WeightedRandomSampler

from fulmen.data.shard import Shard, SharedOrder

__all__ = [
    "BatchShard",
    "DistributedSamplerWrapper",
    "EvalBatchShard",
    "EvalShard",
    "IndexRecordingBatchSampler",
    "LastBatch",
    "TrainBatchShard",
    "TrainShard",
    "UnrepeatedDistributedSampler",
    "UnrepeatedDistributedSamplerWrapper",
    "set_sampler_epoch",
]


class LastBatch(Protocol):
    """What a sampler for training knows about the last batch of a full pass."""

    @property
    def last_weight(self) -> float:
        """What the mean over this rank's part counts for in a plain mean over ranks."""

    @property
    def last_size(self) -> int | None:
        """Number of samples of this rank's part that are no repetition; `None` if it is a full batch."""


# ---- samples


class _SampleShard(DistributedSampler[Any]):
    """Samples of one rank, from the user's own sampler. It looks like torch's `DistributedSampler` from outside.

    Args:
        sampler: The user's sampler.
        dataset: What it draws from.
        shard: Which part is ours.
        batch_size: Samples in a batch of this rank.
        drop_last: Leave out a last batch that is not full.

    Attributes:
        sampler: The user's sampler.
        order: Its order, the same on all ranks.
        shard: Which part is ours.
        shuffle: The user's sampler is one of torch's that shuffle.
    """

    def __init__(
        self, sampler: Iterable[Any], dataset: Any, shard: Shard, *, batch_size: int = 1, drop_last: bool = False
    ) -> None:
        # Not torch's `__init__`: it would take the length from the dataset.
        self.sampler = sampler
        self.order: SharedOrder[Any] = SharedOrder(sampler)
        self.shard = shard
        self.batch_size = batch_size
        self.dataset = dataset
        self.num_replicas, self.rank = shard.num_replicas, shard.rank
        self.drop_last = drop_last
        self.shuffle = isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler))
        self.seed = 0
        self.epoch = 0

    @property
    def generator(self) -> Any:
        """The generator of the user's sampler."""
        return getattr(self.sampler, "generator", None)

    @property
    def num_samples(self) -> int:  # type: ignore[override]  # torch keeps a number, but ours may change with the epoch
        """Number of samples of this rank."""
        return self._size_of(self.rank)

    @property
    def total_size(self) -> int:  # type: ignore[override]  # as above
        """Number of samples of all ranks."""
        return sum(self._size_of(rank) for rank in range(self.num_replicas))

    def _size_of(self, rank: int) -> int:
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of samples of this rank."""
        return self._size_of(self.rank)

    def start_at(self, number: int) -> None:
        """Divide only what comes after the first samples, in passes from now on; 0 makes them whole again.

        Args:
            number: Samples that all ranks together have seen already.
        """
        self.order.start_at(number)

    def set_epoch(self, epoch: int) -> None:
        """Tell the user's sampler which epoch comes next.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch
        _tell_epoch(self.sampler, epoch)


class TrainShard(_SampleShard):
    """Every `num_replicas`-th sample, in the same number of batches on all ranks.

    A rank that would have no sample in the last batch repeats one; `last_weight` is 0 then.
    """

    def __iter__(self) -> Iterator[Any]:
        """Give the samples, taken from the order in pieces of one batch of all ranks."""
        order = iter(self.order)
        step = self.num_replicas * self.batch_size
        while block := list(islice(order, step)):
            if self.drop_last and len(block) < step:
                return
            yield from block[self.rank :: self.num_replicas] or block[:1]

    def _size_of(self, rank: int) -> int:
        full, rest = self._full_and_rest()
        return full * self.batch_size + (max(1, self._share_of_rest(rank)) if rest else 0)

    def _full_and_rest(self) -> tuple[int, int]:
        full, rest = divmod(len(self.order), self.num_replicas * self.batch_size)
        return full, 0 if self.drop_last else rest

    def _share_of_rest(self, rank: int) -> int:
        return Shard(rank, self.num_replicas).share_of(self._full_and_rest()[1])

    @property
    def last_weight(self) -> float:
        """What the mean over this rank's part counts for in a plain mean over ranks."""
        rest = self._full_and_rest()[1]
        return self._share_of_rest(self.rank) * self.num_replicas / rest if rest else 1.0

    @property
    def last_size(self) -> int | None:
        """Number of samples of this rank's last batch that are no repetition; `None` if it is full."""
        return self._share_of_rest(self.rank) if self._full_and_rest()[1] else None


class EvalShard(_SampleShard):
    """The samples of every `num_replicas`-th batch; each sample is seen once, ranks may differ by one batch."""

    def __iter__(self) -> Iterator[Any]:
        """Give the samples."""
        order = iter(self.order)
        left = self._num_batches()
        while left > 0:
            # As many pieces as a single process would fetch, so that the generator of a sampler ends up alike.
            blocks = [list(islice(order, self.batch_size)) for _ in range(min(left, self.num_replicas))]
            left -= len(blocks)
            if self.rank < len(blocks):
                yield from blocks[self.rank]
        list(islice(order, self.batch_size))

    def _num_batches(self) -> int:
        full, rest = divmod(len(self.order), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def _size_of(self, rank: int) -> int:
        number = self._num_batches()
        size = Shard(rank, self.num_replicas).share_of(number) * self.batch_size
        if number and (number - 1) % self.num_replicas == rank:
            size -= max(0, number * self.batch_size - len(self.order))
        return size


# ---- batches


class BatchShard(Sampler[Any]):
    """Batches of one rank, from the user's own batch sampler, whose other attributes can be read here too.

    Args:
        batch_sampler: The user's batch sampler.
        shard: Which part is ours.

    Attributes:
        batch_sampler: The user's batch sampler.
        order: Its batches, the same on all ranks.
        shard: Which part is ours.
    """

    def __init__(self, batch_sampler: Iterable[Any], shard: Shard) -> None:
        self.batch_sampler = batch_sampler
        self.order: SharedOrder[Any] = SharedOrder(batch_sampler)
        self.shard = shard

    def __getattr__(self, name: str) -> Any:
        """Answer for the user's batch sampler."""
        if name in ("batch_sampler", "order", "shard"):  # not there yet while a copy is being unpickled
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def start_at(self, number: int) -> None:
        """Divide only what comes after the first batches, in passes from now on; 0 makes them whole again.

        Args:
            number: Batches that all ranks together have seen already.
        """
        self.order.start_at(number)


class TrainBatchShard(BatchShard):
    """Every `num_replicas`-th batch, the same number on all ranks.

    If the last ones are fewer than there are ranks, they are left out if the batch sampler has `drop_last`. Otherwise
    the ranks without one repeat one of them, and `last_weight` is 0 there.
    """

    def __iter__(self) -> Iterator[Any]:
        """Give the batches."""
        order, rank, step = iter(self.order), self.shard.rank, self.shard.num_replicas
        while block := list(islice(order, step)):
            if self._drops_last() and len(block) < step:
                return
            yield block[rank] if rank < len(block) else block[0]

    def __len__(self) -> int:
        """The number of batches of this rank, and of every other."""
        full, rest = divmod(len(self.order), self.shard.num_replicas)
        return full + (rest > 0 and not self._drops_last())

    def _drops_last(self) -> bool:
        return bool(getattr(self.batch_sampler, "drop_last", False))

    def _rest(self) -> int:
        return 0 if self._drops_last() else len(self.order) % self.shard.num_replicas

    @property
    def last_weight(self) -> float:
        """What this rank's last batch counts for in a plain mean over ranks."""
        rest = self._rest()
        if not rest:
            return 1.0
        return self.shard.num_replicas / rest if self.shard.rank < rest else 0.0

    @property
    def last_size(self) -> int | None:
        """0 if the last batch of this rank is a repetition."""
        return 0 if self.last_weight == 0 else None


class EvalBatchShard(BatchShard):
    """Every `num_replicas`-th batch; each is seen once, ranks may differ by one."""

    def __iter__(self) -> Iterator[Any]:
        """Give the batches."""
        return islice(self.order, self.shard.rank, None, self.shard.num_replicas)

    def __len__(self) -> int:
        """The number of batches of this rank."""
        return self.shard.share_of(len(self.order))


class IndexRecordingBatchSampler(Sampler[list[int]]):
    """A batch sampler that keeps the dataset indices of the batches it gave in the current pass.

    Args:
        batch_sampler: The batch sampler to record; its other attributes can be read here too.

    Attributes:
        seen_batch_indices: One list of dataset indices for each batch, in order. Workers fetch ahead, so it can be
            longer than what the loader has returned: index it with `batch_idx`.
    """

    def __init__(self, batch_sampler: Iterable[list[int]]) -> None:
        self.batch_sampler = batch_sampler
        self.seen_batch_indices: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        """Start a pass, with an empty record."""
        self.seen_batch_indices = seen = []
        for indices in self.batch_sampler:
            seen.append(list(indices))  # a copy: a sampler may fill the same list again
            yield indices

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.batch_sampler)  # type: ignore[arg-type]  # a sampler without length raises the usual TypeError

    def __getattr__(self, name: str) -> Any:
        """Answer for the recorded batch sampler."""
        if name == "batch_sampler":  # not there yet while a copy is being unpickled
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


def set_sampler_epoch(loader: Any, epoch: int) -> None:
    """Call `set_epoch(epoch)` on the sampler of a loader and on the one inside its batch sampler, if they have it.

    Args:
        loader: Any loader.
        epoch: Number of the epoch that comes next, from 0.
    """
    outer = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    for sampler in (outer,) if inner is outer else (outer, inner):
        _tell_epoch(sampler, epoch)


def _tell_epoch(sampler: Any, epoch: int) -> None:
    set_epoch = getattr(sampler, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)


# ---- for programs that divide samples themselves


class _SamplesOf(Sized):
    """What a sampler gives, as something that can be indexed."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self._drawn: list[Any] = []

    def draw(self) -> None:
        """Take one pass of the sampler."""
        self._drawn = list(self.sampler)

    def __getitem__(self, index: int) -> Any:
        return self._drawn[index]

    def __len__(self) -> int:
        return len(self.sampler)


def _samples_of(sampler: Any) -> Any:
    SharedOrder(sampler)  # refuses what has no length
    return _SamplesOf(sampler)


class _OfSampler(DistributedSampler[Any]):
    """What both wrappers share: the samples are those that another sampler gives."""

    def __init__(self, sampler: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(_samples_of(sampler), *args, **kwargs)
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        """Give the samples of this rank."""
        samples: Any = self.dataset
        samples.draw()
        return (samples[index] for index in super().__iter__())

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler, too, which epoch comes next.

        Args:
            epoch: Number of the epoch, from 0.
        """
        super().set_epoch(epoch)
        _tell_epoch(self.sampler, epoch)


class DistributedSamplerWrapper(_OfSampler):
    """A `DistributedSampler` of what another sampler gives: equally many on all ranks, some repeated for that.

    Every rank must draw the same from the sampler: seed it alike.

    Args:
        sampler: A sampler with a length.
        args: As for torch's `DistributedSampler`, after the dataset; `shuffle` would shuffle once more.
        kwargs: Likewise.

    Raises:
        TypeError: The sampler has no length.
    """


class UnrepeatedDistributedSampler(DistributedSampler[Any]):
    """A `DistributedSampler` without repetition: ranks may differ by one sample.

    Args:
        args: As for torch's `DistributedSampler`.
        kwargs: Likewise; `drop_last` has no effect.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        length = len(self.dataset)  # type: ignore[arg-type]  # torch asked for it, too
        self.num_samples = Shard(self.rank, self.num_replicas).share_of(length)
        self.total_size = length

    def __iter__(self) -> Iterator[Any]:
        """Give the samples of this rank."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.total_size, generator=generator).tolist()
        else:
            order = list(range(self.total_size))
        return iter(order[self.rank :: self.num_replicas])


class UnrepeatedDistributedSamplerWrapper(_OfSampler, UnrepeatedDistributedSampler):
    """An `UnrepeatedDistributedSampler` of what another sampler gives.

    Args:
        sampler: A sampler with a length.
        args: As for torch's `DistributedSampler`, after the dataset; `shuffle` would shuffle once more.
        kwargs: Likewise.

    Raises:
        TypeError: The sampler has no length.
    """
