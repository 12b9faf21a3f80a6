"""TPUs, by PyTorch/XLA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import is_installed, require

__all__ = ["XLAAccelerator"]


class XLAAccelerator(Accelerator):
    """Compute on TPUs; needs the package `torch_xla`.

    Args:
        args: For the next class, where this one is mixed with another.
        kwargs: Likewise.

    Raises:
        ModuleNotFoundError: The package `torch_xla` is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require("torch_xla", extra="xla", for_="XLAAccelerator")
        super().__init__(*args, **kwargs)

    def setup_device(self, device: torch.device) -> None:
        """Check that it is an XLA device; the runtime has made it ready.

        Args:
            device: The device this process computes on.

        Raises:
            MisconfigurationException: It is of another kind.
        """
        if device.type != "xla":
            raise MisconfigurationException(
                f"`XLAAccelerator` was given the device `{device}`, on which it cannot compute."
                " Pass `accelerator='auto'`, or a strategy for XLA."
            )

    def teardown(self) -> None:
        """Nothing to give back: the runtime holds the device until the process ends."""

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Return what is free of the device's memory, and how much was used at most.

        Args:
            device: The device; a number is that of an XLA device.

        Returns:
            `avg. free memory (MB)` and `avg. peak memory (MB)`.
        """
        xla_model = require("torch_xla.core.xla_model", extra="xla", for_="XLAAccelerator.get_device_stats")
        device = torch.device("xla", device) if isinstance(device, int) else torch.device(device)
        memory = xla_model.get_memory_info(device)
        used = memory["bytes_used"]
        return {
            "avg. free memory (MB)": (memory["bytes_limit"] - used) / 2**20,
            "avg. peak memory (MB)": memory.get("peak_bytes_used", used) / 2**20,
        }

    @staticmethod
    def parse_devices(devices: int | str | Sequence[int]) -> int | list[int]:
        """Check which TPU devices are asked for: one, all, or a certain one.

        Args:
            devices: 1; the number of all devices, or -1; or a list of one index. Digits stand for a number, and an
                index before a comma, as in "3,", for a list.

        Returns:
            The number of devices, or the list of one index.

        Raises:
            TypeError: The argument is of another type.
            ValueError: Some but not all are asked for, or one that does not exist.
        """
        count = XLAAccelerator.auto_device_count()
        wanted = _parse_text(devices) if isinstance(devices, str) else devices
        if isinstance(wanted, (list, tuple)):
            if len(wanted) == 1 and type(wanted[0]) is int and wanted[0] in range(count):
                return list(wanted)
        elif not isinstance(wanted, int) or isinstance(wanted, bool):
            raise TypeError(
                f"`devices={devices!r}` is a `{type(devices).__name__}`; for TPUs it must be an int (how many), a list"
                " of one int (which), a string of either kind, or 'auto'."
            )
        elif wanted == -1 and count > 0:
            return count
        elif wanted == 1 or (wanted == count and count > 0):
            return wanted
        raise ValueError(
            f"`devices={devices!r}` cannot be chosen: this machine has {count} TPU device(s), of which a run takes one"
            f" or all. Pass 1, 'auto' for all, or a list of one index below {count}."
        )

    @staticmethod
    def get_parallel_devices(devices: int | list[int]) -> list[torch.device]:
        """Return one device per process: those of a list, or the first ones."""
        return [torch.device("xla", index) for index in (range(devices) if isinstance(devices, int) else devices)]

    @staticmethod
    def auto_device_count() -> int:
        """Return the number of TPU devices, without starting the runtime in this process (it could not be forked then).

        Returns:
            0 without `torch_xla` or TPUs.
        """
        if not is_installed("torch_xla"):
            return 0
        tpu = require("torch_xla._internal.tpu", extra="xla", for_="XLAAccelerator")
        # The number of devices per chip comes from the cloud's metadata server, which does not answer elsewhere.
        return int(tpu.num_available_devices()) if tpu.num_available_chips() > 0 else 0

    @staticmethod
    def is_available() -> bool:
        """Tell whether `torch_xla` is installed and there is a TPU."""
        return XLAAccelerator.auto_device_count() > 0

    @staticmethod
    def name() -> str:
        """Return "tpu"."""
        return "tpu"


def _parse_text(text: str) -> int | list[int]:
    """`"3"` is a count, `"3,"` is an index."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if len(parts) == 1:
            return int(parts[0])
        return [int(part) for part in parts if part]
    except ValueError:
        raise ValueError(
            f"`devices={text!r}` cannot be read as TPU devices."
            " Pass a number ('1'), an index followed by a comma ('3,'), or 'auto'."
        ) from None
