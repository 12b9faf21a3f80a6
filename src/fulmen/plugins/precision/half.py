"""16-bit precision throughout."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from fulmen.plugins.precision.contexts import DefaultDtype, convert_floats
from fulmen.plugins.precision.precision import Precision

__all__ = ["HalfPrecision"]

_DTYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16}


class HalfPrecision(Precision):
    """Weights, buffers, inputs and new tensors in 16 bit: half the memory, and the optimizer's updates are rounded too.

    The module keeps its 16-bit weights after the run.

    Args:
        precision: "16-true" (float16) or "bf16-true" (bfloat16: less exact, with the range of float32).

    Raises:
        ValueError: Another precision is given.
    """

    precision = "16-true"

    def __init__(self, precision: Literal["bf16-true", "16-true"] = "16-true") -> None:
        if precision not in _DTYPES:
            raise ValueError(
                f"`HalfPrecision(precision={precision!r})` is not known: it computes wholly in 16 bit."
                f" Choose one of {', '.join(map(repr, _DTYPES))}; for mixed precision use `MixedPrecision`."
            )
        self.precision = precision
        self._dtype = _DTYPES[precision]
        self._context = DefaultDtype(self._dtype)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert floating point parameters and buffers to 16 bit, in place."""
        # not `module.to(dtype)`, which takes the imaginary part from complex parameters
        return module.half() if self._dtype is torch.float16 else module.bfloat16()

    def convert_input(self, data: Any) -> Any:
        """Convert the floating point tensors of a batch to 16 bit."""
        return convert_floats(data, self._dtype)

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have 16 bit; always the same object."""
        return self._context

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new parameters have 16 bit."""
        return self._context

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have 16 bit."""
        return self._context
