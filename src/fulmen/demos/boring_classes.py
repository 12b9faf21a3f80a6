"""The smallest models and data that a Trainer accepts: for tests and for reports of defects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from fulmen.core.datamodule import LightningDataModule
from fulmen.core.module import LightningModule
from fulmen.utilities.types import STEP_OUTPUT

__all__ = [
    "BoringDataModule",
    "BoringDataModuleNoLen",
    "BoringModel",
    "DemoModel",
    "IterableBoringDataModule",
    "ManualOptimBoringModel",
    "Net",
    "RandomDataset",
    "RandomDictDataset",
    "RandomIterableDataset",
    "RandomIterableDatasetWithLen",
]

_FEATURES = 32
_SAMPLES = 64


# ---- data
class RandomDataset(Dataset[Tensor]):
    """Vectors of normal noise, drawn once.

    Args:
        size: Length of a vector.
        length: Number of vectors.
    """

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomDictDataset(RandomDataset):
    """The same vectors as items `{"a": x, "b": x + 2}`."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # type: ignore[override]  # other items, on purpose
        vector = self.data[index]
        return {"a": vector, "b": vector + 2}


class RandomIterableDataset(IterableDataset[Tensor]):
    """Vectors of normal noise, drawn while iterating; has no length.

    Args:
        size: Length of a vector.
        count: Number of vectors of one iteration.
    """

    def __init__(self, size: int, count: int) -> None:
        self.count = count
        self.size = size

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """The same with a length."""

    def __len__(self) -> int:
        return self.count


# ---- models
class BoringModel(LightningModule):
    """One linear layer that is asked to answer ones; brings its own data loaders.

    Example::

        Trainer(fast_dev_run=True).fit(BoringModel())
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        out: Tensor = self.layer(x)
        return out

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean squared difference to `labels`, or to ones."""
        return F.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return self.loss(self(batch))

    def training_step(self, batch: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss under "loss"."""
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss under "x"."""
        return {"x": self.step(batch)}

    def test_step(self, batch: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss under "y"."""
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        """Return SGD at 0.1, and a scheduler that multiplies by 0.1 after each epoch."""
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return 64 samples, one a batch."""
        return _random_loader()

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return 64 samples, one a batch."""
        return _random_loader()

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Return 64 samples, one a batch."""
        return _random_loader()

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Return 64 samples, one a batch."""
        return _random_loader()


def _random_loader() -> DataLoader[Tensor]:
    return DataLoader(RandomDataset(_FEATURES, _SAMPLES))


class ManualOptimBoringModel(BoringModel):
    """The same, calling backward and the optimizer by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Make one optimizer step and return the loss."""
        optimizer = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()  # type: ignore[union-attr]  # one optimizer, so no list
        self.manual_backward(loss)
        optimizer.step()  # type: ignore[union-attr]
        return loss


class DemoModel(LightningModule):
    """A linear layer and a rectifier, trained on their sum; brings no data.

    Args:
        out_dim: Outputs of the layer.
        learning_rate: Of Adam.
    """

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(_FEATURES, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: Any) -> Any:
        """Apply the layer to the flattened input."""
        return torch.relu(self.l1(x.view(x.size(0), -1)))

    def training_step(self, batch: Any, batch_nb: int) -> STEP_OUTPUT:
        """Return the sum of the outputs."""
        out: Tensor = self(batch)
        return out.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Net(nn.Module):
    """A small convolutional classifier of 28 x 28 pictures into ten classes; answers log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities of shape (batch, 10)."""
        features = F.relu(self.conv2(F.relu(self.conv1(x))))
        features = self.dropout1(F.max_pool2d(features, 2)).flatten(1)
        hidden = self.dropout2(F.relu(self.fc1(features)))
        return F.log_softmax(self.fc2(hidden), dim=1)


# ---- datamodules
class BoringDataModule(LightningDataModule):
    """Random vectors cut into four parts of 64: train, val, test, predict."""

    def __init__(self) -> None:
        super().__init__()
        self.random_full = RandomDataset(_FEATURES, 4 * _SAMPLES)

    def setup(self, stage: str) -> None:
        """Cut out the parts that a stage needs."""
        if stage == "fit":
            self.random_train = self._part(0)
        if stage in ("fit", "validate"):
            self.random_val = self._part(1)
        if stage == "test":
            self.random_test = self._part(2)
        if stage == "predict":
            self.random_predict = self._part(3)

    def _part(self, number: int) -> Subset[Tensor]:
        return Subset(self.random_full, range(number * _SAMPLES, (number + 1) * _SAMPLES))

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return the first part, one sample a batch."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return the second part, one sample a batch."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Return the third part, one sample a batch."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Return the fourth part, one sample a batch."""
        return DataLoader(self.random_predict)


class BoringDataModuleNoLen(LightningDataModule):
    """Random vectors from datasets without a length."""

    def setup(self, stage: str) -> None:
        """Make the datasets that a stage needs."""
        if stage == "fit":
            self.random_train = RandomIterableDataset(_FEATURES, 512)
        if stage in ("fit", "validate"):
            self.random_val = RandomIterableDataset(_FEATURES, 128)
        if stage == "test":
            self.random_test = RandomIterableDataset(_FEATURES, 256)
        if stage == "predict":
            self.random_predict = RandomIterableDataset(_FEATURES, 64)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return 512 samples, one a batch."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return 128 samples, one a batch."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Return 256 samples, one a batch."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Return 64 samples, one a batch."""
        return DataLoader(self.random_predict)


class IterableBoringDataModule(LightningDataModule):
    """Two loaders a stage: one with a length, one without."""

    def setup(self, stage: str) -> None:
        """Make the datasets that a stage needs."""
        if stage == "fit":
            self.train_datasets = _pair()
        if stage in ("fit", "validate"):
            self.val_datasets = _pair()
        if stage == "test":
            self.test_datasets = _pair()
        if stage == "predict":
            self.predict_datasets = _pair()

    def train_dataloader(self) -> list[DataLoader[Tensor]]:
        """Return both loaders."""
        return [DataLoader(dataset) for dataset in self.train_datasets]

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Return both loaders."""
        return [DataLoader(dataset) for dataset in self.val_datasets]

    def test_dataloader(self) -> list[DataLoader[Tensor]]:
        """Return both loaders."""
        return [DataLoader(dataset) for dataset in self.test_datasets]

    def predict_dataloader(self) -> list[DataLoader[Tensor]]:
        """Return both loaders."""
        return [DataLoader(dataset) for dataset in self.predict_datasets]


def _pair() -> list[Dataset[Tensor]]:
    return [RandomDataset(_FEATURES, 2 * _SAMPLES), RandomIterableDataset(_FEATURES, 2 * _SAMPLES)]
