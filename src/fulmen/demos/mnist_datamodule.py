"""MNIST as a datamodule; the pictures come through torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, random_split

from fulmen.core.datamodule import LightningDataModule
from fulmen.utilities.lazy import require

__all__ = ["MNIST", "MNISTDataModule"]

_MEAN, _STD = 0.5, 0.5


def MNIST(*args: Any, **kwargs: Any) -> Any:
    """Return `torchvision.datasets.MNIST` made with these arguments.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    return _torchvision("datasets").MNIST(*args, **kwargs)


def _torchvision(submodule: str) -> Any:
    return require(f"torchvision.{submodule}", extra="vision", for_="MNISTDataModule")


class MNISTDataModule(LightningDataModule):
    """MNIST, with some of the training pictures kept for validation.

    Args:
        data_dir: Folder of the files; they are fetched into it if needed.
        val_split: Number of training pictures kept for validation.
        num_workers: Worker processes of each loader.
        normalize: Scale the pictures to mean 0 and deviation 1, about.
        seed: Of the random split.
        batch_size: Pictures in a batch.
    """

    name = "mnist"

    def __init__(
        self,
        data_dir: str = "./data",
        val_split: int = 5000,
        num_workers: int = 16,
        normalize: bool = False,
        seed: int = 42,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.data_dir = data_dir
        self.val_split = val_split
        self.num_workers = num_workers
        self.normalize = normalize
        self.seed = seed
        self.batch_size = batch_size

    @property
    def num_classes(self) -> int:
        """Ten digits."""
        return 10

    @property
    def default_transforms(self) -> Callable[[Any], Any]:
        """Pictures to tensors, normalized if asked for."""
        transforms = _torchvision("transforms")
        steps = [transforms.ToTensor()]
        if self.normalize:
            steps.append(transforms.Normalize(mean=(_MEAN,), std=(_STD,)))
        composed: Callable[[Any], Any] = transforms.Compose(steps)
        return composed

    def prepare_data(self) -> None:
        """Fetch the files."""
        MNIST(self.data_dir, train=True, download=True)
        MNIST(self.data_dir, train=False, download=True)

    def setup(self, stage: str) -> None:
        """Split the training pictures."""
        if stage not in ("fit", "validate"):
            return
        pictures: Dataset[Any] = MNIST(self.data_dir, train=True, download=False, transform=self.default_transforms)
        sizes = [len(pictures) - self.val_split, self.val_split]  # type: ignore[arg-type]  # torchvision's has a length
        generator = torch.Generator().manual_seed(self.seed)
        self.dataset_train, self.dataset_val = random_split(pictures, sizes, generator=generator)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training pictures, shuffled."""
        return self._loader(self.dataset_train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the pictures kept for validation."""
        return self._loader(self.dataset_val, shuffle=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test pictures."""
        pictures = MNIST(self.data_dir, train=False, download=False, transform=self.default_transforms)
        return self._loader(pictures, shuffle=False)

    def _loader(self, dataset: Dataset[Any], *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            drop_last=shuffle,
            pin_memory=torch.cuda.is_available(),
        )
