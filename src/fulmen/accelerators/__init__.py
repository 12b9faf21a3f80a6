"""Kinds of hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator as Accelerator
    from fulmen.accelerators.cpu import CPUAccelerator as CPUAccelerator
    from fulmen.accelerators.cuda import CUDAAccelerator as CUDAAccelerator
    from fulmen.accelerators.cuda import find_usable_cuda_devices as find_usable_cuda_devices
    from fulmen.accelerators.mps import MPSAccelerator as MPSAccelerator
    from fulmen.accelerators.registry import ACCELERATOR_REGISTRY as ACCELERATOR_REGISTRY
    from fulmen.accelerators.registry import AcceleratorRegistry as AcceleratorRegistry
    from fulmen.accelerators.xla import XLAAccelerator as XLAAccelerator

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ACCELERATOR_REGISTRY": "fulmen.accelerators.registry",
        "Accelerator": "fulmen.accelerators.accelerator",
        "AcceleratorRegistry": "fulmen.accelerators.registry",
        "CPUAccelerator": "fulmen.accelerators.cpu",
        "CUDAAccelerator": "fulmen.accelerators.cuda",
        "MPSAccelerator": "fulmen.accelerators.mps",
        "XLAAccelerator": "fulmen.accelerators.xla",
        "find_usable_cuda_devices": "fulmen.accelerators.cuda",
    },
)
