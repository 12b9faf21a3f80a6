"""Models, data and callbacks that the command lines of the tests choose from."""

from __future__ import annotations

import enum
from typing import Any, ClassVar

import torch
from torch import nn

from fulmen import Callback
from fulmen.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable, SaveConfigCallback
from fulmen.demos.boring_classes import BoringDataModule, BoringModel


class Kind(enum.Enum):
    small = "s"
    large = "l"


class Net(BoringModel):
    """A model for tests.

    Args:
        width: How wide it is.
        name: What it is called.
        activation: A module in it.
        kind: One of two.
        rates: A list of numbers.
    """

    def __init__(
        self,
        width: int = 3,
        name: str = "net",
        activation: nn.Module | None = None,
        kind: Kind = Kind.small,
        rates: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width = width
        self.name = name
        self.activation = activation
        self.kind = kind
        self.rates = rates


class DeepNet(Net):
    """A net with a depth."""

    def __init__(self, depth: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = depth


class RequiredNet(BoringModel):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class FactoryNet(BoringModel):
    """A net that makes its optimizer by what it is given."""

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable = torch.optim.lr_scheduler.ConstantLR,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.scheduler = scheduler

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [self.scheduler(optimizer)]


class InitNet(BoringModel):
    """A net that gets two optimizers as settings."""

    def __init__(self, first_init: dict[str, Any] | None = None, second_init: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.first_init = first_init
        self.second_init = second_init


class VectorData(BoringDataModule):
    """VectorData for tests.

    Args:
        batch_size: Samples in a batch.
    """

    def __init__(self, batch_size: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.num_classes = 7


class SizedCallback(Callback):
    """A callback with a setting."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


class NotedConfig(SaveConfigCallback):
    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.noted = self.parser.dump(self.config)


def make_net(width: int = 11) -> Net:
    """Make a net by a function."""
    return Net(width=width, name="by function")


class QuietCLI(LightningCLI):
    """A CLI for tests: on the CPU, short, prints nothing, saves no files."""

    quiet_defaults: ClassVar[dict[str, Any]] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "limit_test_batches": 1,
        "limit_predict_batches": 1,
        "max_epochs": 1,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["trainer_defaults"] = {**self.quiet_defaults, **kwargs.get("trainer_defaults", {})}
        super().__init__(*args, **{"save_config_callback": None, **kwargs})
