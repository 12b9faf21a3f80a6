"""One process, one device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fulmen.strategies.strategy import Strategy

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.registry import Registry

__all__ = ["SingleDeviceStrategy"]


class SingleDeviceStrategy(Strategy):
    """Everything on one device, in this process.

    Args:
        device: The device: a `torch.device`, its name, or the index of a GPU.
        accelerator: Its kind of hardware; by default that of `device`.
        checkpoint_io: Writes and reads checkpoints; a `TorchCheckpointIO` by default.
        precision_plugin: The number format; 32 bit by default.

    Example::

        Trainer(strategy=SingleDeviceStrategy(device="cuda:1"))
    """

    strategy_name = "single_device"

    def __init__(
        self,
        device: torch.device | str | int = "cpu",
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision_plugin=precision_plugin)
        self._root_device = device if isinstance(device, torch.device) else torch.device(device)

    @property
    def root_device(self) -> torch.device:
        """The device."""
        return self._root_device

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Strategy]) -> None:
        """Enter this class under its name.

        Args:
            strategy_registry: Where to enter it.
        """
        strategy_registry.register(cls.strategy_name, cls, description=cls.__name__)
