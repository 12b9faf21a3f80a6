"""Read the argument `devices=`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["parse_cpu_processes", "parse_gpu_devices"]


def parse_cpu_processes(devices: int | str) -> int:
    """Return the number of processes on the CPU.

    Args:
        devices: A positive int, or one as text.

    Returns:
        The number of processes.

    Raises:
        TypeError: It is anything else.
    """
    if isinstance(devices, str) and devices.strip().isdecimal():
        devices = int(devices)
    if not isinstance(devices, int) or isinstance(devices, bool) or devices <= 0:
        raise TypeError(
            f"`devices={devices!r}` is not possible with the CPU: there it is the number of processes."
            " Pass an int greater than 0, or 'auto'."
        )
    return devices


def parse_gpu_devices(devices: int | str | Sequence[int], available: Sequence[int], *, kind: str) -> list[int]:
    """Return the indices of the chosen GPUs.

    Args:
        devices: How many of them (an int, or digits: the first ones; -1: all), or which (a list or tuple of indices, or
            indices separated by commas; `"3,"` is the list `[3]`).
        available: The indices that exist.
        kind: Name of the hardware, for messages.

    Returns:
        Indices in the order given.

    Raises:
        TypeError: The argument is of another type.
        MisconfigurationException: No device is asked for, one twice, or one that does not exist.
    """
    wanted = _parse_text(devices) if isinstance(devices, str) else devices
    if isinstance(wanted, (list, tuple)):
        indices = _checked_indices(wanted, devices)
    elif isinstance(wanted, int) and not isinstance(wanted, bool):
        indices = list(available) if wanted == -1 else list(range(max(wanted, 0)))
    else:
        raise TypeError(
            f"`devices={devices!r}` is a `{type(devices).__name__}`; it must be an int (how many), a list or tuple of"
            " ints (which), a string of either kind, or 'auto'."
        )
    if not indices:
        raise MisconfigurationException(
            f"`devices={devices!r}` selects no device, and a run needs one. Available with {kind}: {list(available)}."
        )
    missing = [index for index in indices if index not in available]
    if missing:
        raise MisconfigurationException(
            f"`devices={devices!r}` selects {indices}, but {missing} do not exist: with {kind} this machine has"
            f" {list(available)}. Select some of those."
        )
    return indices


def _parse_text(text: str) -> int | list[int]:
    """`"3"` is a count, `"3,"` and `"0,2"` are indices."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if len(parts) == 1:
            return int(parts[0])
        return [int(part) for part in parts if part]
    except ValueError:
        raise MisconfigurationException(
            f"`devices={text!r}` cannot be read as devices."
            " Pass a number ('2'), indices separated by commas ('0,2'), '-1' for all, or 'auto'."
        ) from None


def _checked_indices(indices: Sequence[Any], devices: Any) -> list[int]:
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(
                f"`devices={devices!r}` contains {index!r}, which is a `{type(index).__name__}` and not the index of a"
                " device. Pass ints."
            )
    if len(set(indices)) < len(indices):
        raise MisconfigurationException(
            f"`devices={devices!r}` names a device twice; each can serve one process only. Remove the repetition."
        )
    return list(indices)
