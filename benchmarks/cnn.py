"""A small CNN on random pictures, trained and validated: how much of the overhead a real model shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.frameworks import Framework
from benchmarks.timing import Clock, Setup

__all__ = ["plain", "trained"]

BATCH_SIZE = 32
CLASSES = 10
LEARNING_RATE = 0.01


class Epochs:
    """A loader that times its second epoch, from its begin to the begin of the third."""

    def __init__(self, loader: DataLoader[Any], clock: Clock) -> None:
        self.clock = clock
        self._loader = loader
        self._begun = 0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        self._begun += 1
        if self._begun == 2:
            self.clock.start()
        elif self._begun == 3:
            self.clock.stop()
        return iter(self._loader)


NUM_EPOCHS = 3


def make_net() -> nn.Sequential:
    """Return the network: two convolutions, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * 25, CLASSES),
    )  # fmt: skip


def make_loader(num_batches: int) -> DataLoader[Any]:
    """Return so many batches of random pictures and classes."""
    count = num_batches * BATCH_SIZE
    pictures = torch.randn(count, 1, 28, 28)
    return DataLoader(TensorDataset(pictures, torch.randint(CLASSES, (count,))), batch_size=BATCH_SIZE)


def loaders(setup: Setup) -> tuple[Epochs, DataLoader[Any]]:
    """Return training batches, and a quarter as many to validate."""
    return Epochs(make_loader(setup.epoch_batches), setup.new_clock()), make_loader(max(1, setup.epoch_batches // 4))


def plain(setup: Setup) -> float:
    """Train and validate with a loop; mean loss and accuracy are kept, as the Trainer's model logs them."""
    train, val = loaders(setup)
    device = torch.device(setup.device)
    net = make_net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    for _ in range(NUM_EPOCHS):
        net.train()
        for pictures, classes in train:
            loss = F.cross_entropy(net(pictures.to(device)), classes.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
        net.eval()
        total_loss = correct = torch.zeros((), device=device)
        with torch.no_grad():
            for pictures, classes in val:
                classes = classes.to(device)
                scores = net(pictures.to(device))
                total_loss = total_loss + F.cross_entropy(scores, classes) * len(classes)
                correct = correct + (scores.argmax(1) == classes).sum()
    return train.clock.seconds


class Classifying:
    """What a user writes; `trained` adds the package's base class."""

    if TYPE_CHECKING:  # of the base class
        log: Callable[..., None]

    net: nn.Sequential

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        pictures, classes = batch
        loss = F.cross_entropy(self.net(pictures), classes)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        pictures, classes = batch
        scores = self.net(pictures)
        self.log("val_loss", F.cross_entropy(scores, classes))
        self.log("val_acc", (scores.argmax(1) == classes).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Return SGD."""
        return torch.optim.SGD(self.net.parameters(), lr=LEARNING_RATE)


def trained(setup: Setup, framework: Framework, arguments: dict[str, Any]) -> float:
    """Train and validate with a Trainer made of `arguments`."""
    train, val = loaders(setup)
    model: Any = type("Classifier", (Classifying, framework.module), {})()
    model.net = make_net()
    framework.trainer(**{**arguments, "max_epochs": NUM_EPOCHS}).fit(model, train, val)
    return train.clock.seconds
