"""GPUs of Apple silicon."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.devices import parse_gpu_devices
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require

__all__ = ["MPSAccelerator", "get_device_stats"]


class MPSAccelerator(Accelerator):
    """Compute on the GPU of a Mac; there is one. The environment variable `DISABLE_MPS=1` hides it."""

    def setup_device(self, device: torch.device) -> None:
        """Check that the device is the Mac's GPU.

        Args:
            device: The device.

        Raises:
            MisconfigurationException: It is not.
        """
        if device.type != "mps":
            raise MisconfigurationException(
                f"`MPSAccelerator` was given the device `{device}`, on which it cannot compute."
                " Pass `accelerator='auto'`, or a strategy whose device is 'mps'."
            )

    def teardown(self) -> None:
        """Give cached memory back to the system."""
        torch.mps.empty_cache()

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Return the load of the machine, whose memory is shared with the GPU, in percent.

        Args:
            device: Not looked at.

        Returns:
            The entries `M1_vm_percent`, `M1_percent`, `M1_swap_percent`.
        """
        return get_device_stats()

    @staticmethod
    def parse_devices(devices: int | str | Sequence[int]) -> list[int]:
        """Return `[0]` if that is what is asked for; see `parse_gpu_devices`."""
        return parse_gpu_devices(devices, range(MPSAccelerator.auto_device_count()), kind="MPS")

    @staticmethod
    def get_parallel_devices(devices: Sequence[int]) -> list[torch.device]:
        """Return one device per index."""
        return [torch.device("mps", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """Return 1."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Tell whether this is a Mac with such a GPU, and it is not hidden."""
        return os.getenv("DISABLE_MPS", "0") != "1" and torch.backends.mps.is_available()

    @staticmethod
    def name() -> str:
        """Return "mps"."""
        return "mps"


def get_device_stats() -> dict[str, float]:
    """Return the load of the machine, whose memory is shared with the GPU.

    Returns:
        `M1_vm_percent` (memory), `M1_percent` (processor, since the last call), `M1_swap_percent`; each 0 to 100.

    Raises:
        ModuleNotFoundError: The package `psutil` is not installed.
    """
    psutil = require("psutil", extra="stats", for_="MPSAccelerator.get_device_stats")
    return {
        "M1_vm_percent": psutil.virtual_memory().percent,
        "M1_percent": psutil.cpu_percent(),
        "M1_swap_percent": psutil.swap_memory().percent,
    }
