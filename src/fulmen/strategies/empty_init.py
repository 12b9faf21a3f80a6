"""Make modules without filling their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["EmptyInit"]


class EmptyInit(TorchFunctionMode):
    """Inside the block the functions of `torch.nn.init` leave tensors as they are.

    Saves the time to fill parameters that are overwritten at once, e.g. by those of a checkpoint.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return the tensor of an init function untouched; call everything else."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" and "tensor" in kwargs:
            return kwargs["tensor"]
        return func(*args, **kwargs)
