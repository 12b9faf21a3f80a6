"""Samplers that the Trainer puts into loaders, and the epoch that samplers are told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import Sampler

__all__ = ["IndexRecordingBatchSampler", "set_sampler_epoch"]


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
        set_epoch = getattr(sampler, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
