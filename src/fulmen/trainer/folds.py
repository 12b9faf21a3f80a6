"""The data of one fold: the loaders of a datamodule, over other samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, SequentialSampler, Subset

from fulmen.core.datamodule import LightningDataModule
from fulmen.data.rebuild import rebuild, recording_dataloader_arguments
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import is_overridden

__all__ = ["PlainData", "dataset_of", "of_fold"]


class PlainData(LightningDataModule):
    """A dataset as a datamodule whose training shuffles.

    Args:
        dataset: The dataset.
        arguments: Of its `DataLoader`.
    """

    def __init__(self, dataset: Any, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.dataset = dataset
        self.arguments = arguments

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all samples in random order."""
        return DataLoader(self.dataset, **{"shuffle": True, **self.arguments})

    def val_dataloader(self) -> DataLoader[Any]:
        """Return all samples in order."""
        return DataLoader(self.dataset, **{**self.arguments, "shuffle": False, "drop_last": False})


def dataset_of(data: LightningDataModule, pool: str) -> Dataset[Any]:
    """Set a datamodule up and return the samples that are to be divided.

    Args:
        data: The datamodule.
        pool: "train" or "train+val".

    Raises:
        MisconfigurationException: It has no single loaders of datasets with a length.
    """
    data.prepare_data()
    data.setup("fit")
    return _pooled(data, pool)


def of_fold(
    data: LightningDataModule, train_indices: Sequence[int], val_indices: Sequence[int], pool: str
) -> LightningDataModule:
    """Return a datamodule like the given one, whose loaders serve other samples.

    Args:
        data: The datamodule; it is not modified.
        train_indices: Samples of the training dataloader.
        val_indices: Samples of the validation dataloader.
        pool: Where the samples are counted: "train" or "train+val".
    """
    fold = copy.copy(data)
    kind = type(data)
    fold.__class__ = type(
        kind.__name__, (_FoldLoaders, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    )
    fold.samples_of_fold = (tuple(train_indices), tuple(val_indices), pool)  # type: ignore[attr-defined]  # for the class above
    return fold


class _FoldLoaders:
    """The two loaders of a fold, in front of a datamodule's class."""

    samples_of_fold: tuple[Sequence[int], Sequence[int], str]

    def train_dataloader(self) -> DataLoader[Any]:
        """The training loader with this fold's samples."""
        loader = _single(super().train_dataloader, self)  # type: ignore[misc]  # of the datamodule
        train_indices, _, pool = self.samples_of_fold
        return _over(loader, Subset(self._pool(loader, pool), train_indices))

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation loader, or the training loader in order, with the samples held out."""
        _, val_indices, pool = self.samples_of_fold
        train_loader = _single(super().train_dataloader, self)  # type: ignore[misc]  # of the datamodule
        held_out = Subset(self._pool(train_loader, pool), val_indices)
        if is_overridden("val_dataloader", super(), LightningDataModule):
            return _over(_single(super().val_dataloader, self), held_out)  # type: ignore[misc]  # likewise
        return rebuild(train_loader, dataset=held_out, sampler=SequentialSampler(held_out), drop_last=False)

    def _pool(self, train_loader: DataLoader[Any], pool: str) -> Any:
        if pool == "train":
            return train_loader.dataset
        val_loader = _single(super().val_dataloader, self)  # type: ignore[misc]  # of the datamodule
        return ConcatDataset([train_loader.dataset, val_loader.dataset])


def _pooled(data: LightningDataModule, pool: str) -> Dataset[Any]:
    parts = [_single(data.train_dataloader, data).dataset]
    if pool == "train+val":
        parts.append(_single(data.val_dataloader, data).dataset)
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def _single(make: Any, owner: object) -> DataLoader[Any]:
    """Return the loader that a hook makes."""
    with recording_dataloader_arguments():
        loader = make()
    name = f"{type(owner).__name__}.{make.__name__}"
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
        raise MisconfigurationException(
            f"`{name}` returned a {type(loader).__name__}, whose samples cannot be divided into folds. Return one"
            " `DataLoader` over a dataset with a length."
        )
    if type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise MisconfigurationException(
            f"`{name}` uses a {type(loader.sampler).__name__}, which knows the order of all samples, but not of those"
            " of a fold. Use `shuffle=`, or pass data without it."
        )
    return loader


def _over(loader: DataLoader[Any], samples: Subset[Any]) -> DataLoader[Any]:
    """Return the same loader over other samples."""
    if isinstance(loader.sampler, RandomSampler):
        return rebuild(loader, dataset=samples, sampler=RandomSampler(samples, generator=loader.sampler.generator))
    return rebuild(loader, dataset=samples, sampler=SequentialSampler(samples))
