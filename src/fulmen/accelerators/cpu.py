"""The processor."""

from __future__ import annotations

from typing import Any

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.devices import parse_cpu_processes
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require

__all__ = ["CPUAccelerator", "get_cpu_stats"]


class CPUAccelerator(Accelerator):
    """Compute on the CPU; a "device" is a process."""

    def setup_device(self, device: torch.device) -> None:
        """Check that the device is the CPU.

        Args:
            device: The device.

        Raises:
            MisconfigurationException: It is not.
        """
        if device.type != "cpu":
            raise MisconfigurationException(
                f"`CPUAccelerator` was given the device `{device}`, on which it cannot compute."
                " Pass `accelerator='auto'`, or a strategy whose device is 'cpu'."
            )

    def teardown(self) -> None:
        """Nothing to give back."""

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Return the load of processor and memory of the machine, in percent.

        Args:
            device: Not looked at.

        Returns:
            The entries `cpu_vm_percent`, `cpu_percent`, `cpu_swap_percent`.
        """
        return get_cpu_stats()

    @staticmethod
    def parse_devices(devices: int | str) -> int:
        """Return the number of processes; see `parse_cpu_processes`."""
        return parse_cpu_processes(devices)

    @staticmethod
    def get_parallel_devices(devices: int | str) -> list[torch.device]:
        """Return the CPU once per process."""
        return [torch.device("cpu")] * parse_cpu_processes(devices)

    @staticmethod
    def auto_device_count() -> int:
        """Return 1: torch uses all cores in one process."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Return True."""
        return True

    @staticmethod
    def name() -> str:
        """Return "cpu"."""
        return "cpu"


def get_cpu_stats() -> dict[str, float]:
    """Return the load of processor and memory of this machine.

    Returns:
        `cpu_vm_percent` (memory), `cpu_percent` (since the last call), `cpu_swap_percent`; each 0 to 100.

    Raises:
        ModuleNotFoundError: The package `psutil` is not installed.
    """
    psutil = require("psutil", extra="stats", for_="CPUAccelerator.get_device_stats")
    return {
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_percent": psutil.cpu_percent(),
        "cpu_swap_percent": psutil.swap_memory().percent,
    }
