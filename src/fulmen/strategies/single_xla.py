"""One process, one XLA device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fulmen.plugins.io.xla import XLACheckpointIO
from fulmen.plugins.precision.xla import XLAPrecision
from fulmen.strategies.single_device import SingleDeviceStrategy
from fulmen.utilities.lazy import require
from fulmen.utilities.parameter_tying import find_shared_parameters, set_shared_parameters

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.registry import Registry

__all__ = ["DEBUG_VARIABLE", "SingleDeviceXLAStrategy", "move_to_xla"]

DEBUG_VARIABLE = "PT_XLA_DEBUG"


class SingleDeviceXLAStrategy(SingleDeviceStrategy):
    """Everything on one XLA device, in this process. Needs the package `torch_xla`.

    Args:
        device: The device, or its index.
        accelerator: Its kind of hardware; by default the TPU.
        checkpoint_io: Writes and reads checkpoints; a `XLACheckpointIO` by default.
        precision_plugin: The number format; `XLAPrecision()` by default.
        debug: Let `torch_xla` print its metrics and debug reports.

    Raises:
        ModuleNotFoundError: `torch_xla` is not installed.
    """

    strategy_name = "single_xla"

    def __init__(
        self,
        device: torch.device | str | int = 0,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        debug: bool = False,
    ) -> None:
        require("torch_xla", extra="xla", for_=type(self).__name__)
        super().__init__(
            device=torch.device("xla", device) if isinstance(device, int) else device,
            accelerator=accelerator,
            checkpoint_io=checkpoint_io or XLACheckpointIO(),
            precision_plugin=precision_plugin or XLAPrecision(),
        )
        parts = {"checkpoint_io": checkpoint_io, "precision_plugin": precision_plugin}
        self._chosen -= {name for name, part in parts.items() if part is None}
        self.debug = debug

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Enter this class under its names.

        Args:
            strategy_registry: Where to enter it.
        """
        for name in (cls.strategy_name, "single_tpu"):
            strategy_registry.register(name, cls, description=cls.__name__)

    def setup_environment(self) -> None:
        """Make the device ready."""
        if self.debug:
            os.environ[DEBUG_VARIABLE] = "1"
        super().setup_environment()

    def module_to_device(self, module: nn.Module) -> None:
        """Move a module to the device; weights that it uses in several places stay shared.

        Args:
            module: The module; moved in place.
        """
        move_to_xla(module, self.root_device)

    def teardown(self) -> None:
        """Bring module and optimizers back to host memory."""
        super().teardown()
        os.environ.pop(DEBUG_VARIABLE, None)


def move_to_xla(module: nn.Module, device: torch.device) -> None:
    """Move a module to an XLA device, where each place of a shared weight would become a weight of its own.

    Args:
        module: The module; moved in place.
        device: Where to.
    """
    shared = find_shared_parameters(module)
    module.to(device)
    set_shared_parameters(module, shared)
