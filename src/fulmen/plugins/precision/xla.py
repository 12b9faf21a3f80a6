"""Number formats on XLA devices (TPU)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from fulmen.plugins.precision.contexts import DefaultDtype, convert_floats
from fulmen.plugins.precision.precision import Precision
from fulmen.utilities.lazy import require

__all__ = ["XLAPrecision"]

_DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}


class XLAPrecision(Precision):
    """32 or 16 bit throughout on XLA devices, and steps that synchronize gradients as XLA does.

    Needs the package `torch_xla`. The 16-bit formats convert weights, inputs and new tensors, as `HalfPrecision` does;
    the environment variables XLA_USE_BF16 and XLA_USE_F16, deprecated by the package, are not touched.

    Args:
        precision: "32-true", "16-true" or "bf16-true".

    Raises:
        ModuleNotFoundError: `torch_xla` is not installed.
        ValueError: Another precision is given.
    """

    def __init__(self, precision: Literal["32-true", "16-true", "bf16-true"] = "32-true") -> None:
        self._xla_model = require("torch_xla.core.xla_model", extra="xla", for_="XLAPrecision")
        if precision not in _DTYPES:
            raise ValueError(
                f"`XLAPrecision(precision={precision!r})` is not known: XLA devices compute in one type throughout."
                f" Choose one of {', '.join(map(repr, _DTYPES))}."
            )
        self.precision = precision
        self._dtype = _DTYPES[precision]
        self._context = DefaultDtype(self._dtype)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert floating point parameters and buffers, in place; in 32 bit they stay as they are."""
        if self.precision == "32-true":
            return module
        return module.half() if self._dtype is torch.float16 else module.bfloat16()

    def convert_input(self, data: Any) -> Any:
        """Convert the floating point tensors of a batch; in 32 bit they stay as they are."""
        return data if self.precision == "32-true" else convert_floats(data, self._dtype)

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type."""
        return data if self.precision == "32-true" else convert_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have the type; always the same object."""
        return super().forward_context() if self.precision == "32-true" else self._context

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new parameters have the type."""
        return self.forward_context()

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have the type."""
        return self.forward_context()

    def optimizer_step(
        self, optimizer: Any, model: Any = None, closure: Callable[[], Any] | None = None, **kwargs: Any
    ) -> Any:
        """Compute the gradients, average them over the devices, and update the parameters.

        Args:
            optimizer: The optimizer, not wrapped.
            model: The user's module; not used.
            closure: Computes gradients; called once, before the step.
            kwargs: Further arguments of the optimizer's `step`.

        Returns:
            What the closure returned.
        """
        result = None if closure is None else closure()
        self._xla_model.optimizer_step(optimizer, optimizer_args=kwargs)
        return result
