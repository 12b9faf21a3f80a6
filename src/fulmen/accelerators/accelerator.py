"""What the framework needs to know of a kind of hardware."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fulmen.utilities.registry import Registry

__all__ = ["Accelerator"]


class Accelerator(ABC):
    """One kind of hardware: which devices there are, how to make one ready, what it can report.

    Subclass it for hardware that is not known here, and pass an instance, or register it by name::

        AcceleratorRegistry.register("npu", NPUAccelerator, description="...")
        Trainer(accelerator="npu")
    """

    @abstractmethod
    def setup_device(self, device: torch.device) -> None:
        """Make a device ready for this process.

        Args:
            device: The device this process computes on.

        Raises:
            MisconfigurationException: The device is of another kind.
        """

    def setup(self, trainer: Any) -> None:  # noqa: B027 - a documented no-op
        """Called at the start of each run, after `setup_device`.

        Args:
            trainer: The running Trainer.
        """

    @abstractmethod
    def teardown(self) -> None:
        """Give back at the end of a run what the device holds without need."""

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Return figures on the load of a device.

        Args:
            device: The device.

        Returns:
            Name to number.

        Raises:
            NotImplementedError: This accelerator reports nothing.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` reports no statistics of its devices."
            " Define its `get_device_stats`, or remove the `DeviceStatsMonitor` callback."
        )

    @staticmethod
    @abstractmethod
    def parse_devices(devices: Any) -> Any:
        """Check the argument `devices=` and bring it into the form that `get_parallel_devices` takes."""

    @staticmethod
    @abstractmethod
    def get_parallel_devices(devices: Any) -> list[Any]:
        """Return the devices, one per process of this machine, for what `parse_devices` returned."""

    @staticmethod
    @abstractmethod
    def auto_device_count() -> int:
        """Return how many devices `devices="auto"` stands for."""

    @staticmethod
    @abstractmethod
    def is_available() -> bool:
        """Tell whether this machine has such hardware, without starting it up."""

    @staticmethod
    @abstractmethod
    def name() -> str:
        """Return the name used in `Trainer(accelerator=...)`."""

    @classmethod
    def register_accelerators(cls, accelerator_registry: Registry[Accelerator]) -> None:
        """Enter this class under its name.

        Args:
            accelerator_registry: Where to enter it.
        """
        accelerator_registry.register(cls.name(), cls, description=cls.__name__)
