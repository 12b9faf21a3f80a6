"""A module that knows its device and dtype without asking its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import Self

__all__ = ["DeviceDtypeModule"]


class DeviceDtypeModule(nn.Module):
    """Keeps `device` and `dtype` up to date over `to`, `cuda`, `half` and the like, for itself and its children."""

    def __init__(self) -> None:
        super().__init__()
        self._dtype: torch.dtype = torch.get_default_dtype()
        self._device: torch.device = torch.get_default_device()

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type that the module was last converted to."""
        return self._dtype

    @dtype.setter
    def dtype(self, new_dtype: Any) -> None:
        raise RuntimeError("`dtype` cannot be set. Convert the module: `module.to(torch.float64)`.")

    @property
    def device(self) -> torch.device:
        """The device that the module was last moved to."""
        device = self._device
        if device.type == "cuda" and device.index is None:
            return torch.device(f"cuda:{torch.cuda.current_device()}")
        return device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert the module, as `torch.nn.Module.to`."""
        device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
        super().to(*args, **kwargs)  # first, as it refuses what cannot be
        self._note(device=device, dtype=dtype)
        return self

    def cuda(self, device: torch.device | int | None = None) -> Self:
        """Move the module to a GPU, the current one by default."""
        index = torch.cuda.current_device() if device is None else device
        target = torch.device("cuda", index) if isinstance(index, int) else torch.device(index)
        super().cuda(target)
        self._note(device=target)
        return self

    def cpu(self) -> Self:
        """Move the module to the CPU."""
        self._note(device=torch.device("cpu"))
        return super().cpu()

    def type(self, dst_type: str | torch.dtype) -> Self:
        """Convert all parameters and buffers."""
        if isinstance(dst_type, torch.dtype):
            self._note(dtype=dst_type)
        return super().type(dst_type)

    def float(self) -> Self:
        """Convert to single precision."""
        self._note(dtype=torch.float)
        return super().float()

    def double(self) -> Self:
        """Convert to double precision."""
        self._note(dtype=torch.double)
        return super().double()

    def half(self) -> Self:
        """Convert to half precision."""
        self._note(dtype=torch.half)
        return super().half()

    def bfloat16(self) -> Self:
        """Convert to bfloat16."""
        self._note(dtype=torch.bfloat16)
        return super().bfloat16()

    def _note(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        for module in self.modules():
            if isinstance(module, DeviceDtypeModule):
                if device is not None:
                    module.__dict__["_device"] = device
                if dtype is not None:
                    module.__dict__["_dtype"] = dtype
