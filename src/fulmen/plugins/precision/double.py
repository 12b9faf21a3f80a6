"""64-bit precision."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fulmen.plugins.precision.contexts import DefaultDtype, convert_floats
from fulmen.plugins.precision.precision import Precision

__all__ = ["DoublePrecision"]


class DoublePrecision(Precision):
    """Weights, buffers, inputs and new tensors in 64 bit (`precision="64-true"`).

    The module keeps its 64-bit weights after the run.
    """

    precision = "64-true"

    def __init__(self) -> None:
        self._context = DefaultDtype(torch.float64)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert floating point parameters and buffers to 64 bit, in place."""
        return module.double()

    def convert_input(self, data: Any) -> Any:
        """Convert the floating point tensors of a batch to 64 bit."""
        return convert_floats(data, torch.float64)

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have 64 bit; always the same object."""
        return self._context

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new parameters have 64 bit."""
        return self._context

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have 64 bit."""
        return self._context
