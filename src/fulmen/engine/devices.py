"""From the argument `devices=` to one device per process of this machine."""

from __future__ import annotations

from typing import Any

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.cpu import CPUAccelerator
from fulmen.engine.request import Request
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["all_devices", "as_many_as_started", "devices_asked_for", "one_device"]


def devices_asked_for(request: Request) -> list[torch.device]:
    """Return the devices that the argument names.

    Raises:
        MisconfigurationException: It names none, or some that do not exist.
        TypeError: It is of a wrong type.
    """
    devices = request.devices
    if type(devices) is not bool and devices in (0, "0", [], ()):
        raise MisconfigurationException(
            f"`devices={devices!r}` selects no device, and a run needs one. Pass 'auto', a number, or indices."
        )
    return _parsed(request, devices)


def one_device(request: Request) -> list[torch.device]:
    """Return the first device."""
    return _parsed(request, 1)


def all_devices(request: Request) -> list[torch.device]:
    """Return what the accelerator understands by "auto"."""
    return _parsed(request, _hardware(request).auto_device_count())


def as_many_as_started(request: Request) -> list[torch.device]:
    """Return one device for each process that was started on this machine.

    Raises:
        MisconfigurationException: There are fewer devices than processes.
    """
    layout, hardware = request.layout, _hardware(request)
    assert layout is not None  # noqa: S101 - tested by the rule
    wanted = layout.per_node or (layout.world_size or 1) // request.nodes or 1
    there = hardware.auto_device_count()
    if not isinstance(hardware, CPUAccelerator) and there < wanted:
        raise MisconfigurationException(
            f"{wanted} processes were started on this machine, but each sees only {there} device(s) of"
            f" `{type(hardware).__name__}`, and each process needs one of its own. Start {there}, let all of them see"
            " all devices (`CUDA_VISIBLE_DEVICES`; with Slurm `--gpus-per-node` in place of `--gpus-per-task`), or"
            " pass `accelerator='cpu'`."
        )
    return _parsed(request, wanted)


def _parsed(request: Request, devices: Any) -> list[torch.device]:
    hardware = _hardware(request)
    found = hardware.get_parallel_devices(hardware.parse_devices(devices))
    if not found:
        raise MisconfigurationException(
            f"`devices={request.devices!r}` selects no device: `{type(hardware).__name__}` returns {found!r} for it,"
            " and a run needs one. Pass 'auto', a number, or indices."
        )
    return [device if isinstance(device, torch.device) else torch.device(device) for device in found]


def _hardware(request: Request) -> Accelerator:
    assert request.hardware is not None  # noqa: S101 - decided before
    return request.hardware
