"""The number formats that DeepSpeed computes in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fulmen.plugins.precision.contexts import DefaultDtype, convert_floats
from fulmen.plugins.precision.precision import Precision
from fulmen.utilities.enums import GradClipAlgorithmType
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["DeepSpeedPrecision"]

_DTYPES = {
    "32-true": torch.float32,
    "16-true": torch.float16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
}


class DeepSpeedPrecision(Precision):
    """What DeepSpeed computes in; it keeps a copy of the weights in 32 bit, scales the loss, and clips.

    In 16 bit, DeepSpeed holds weights and gradients in 16 bit and the optimizer works in 32; so "16-true" and
    "16-mixed" differ only in that the former also makes new layers in 16 bit.

    Args:
        precision: "32-true", "16-true", "16-mixed", "bf16-true" or "bf16-mixed".

    Raises:
        ValueError: Another precision is given.
    """

    precision = "32-true"
    dtype: torch.dtype
    """What weights, gradients and inputs are in."""
    clips_to: float | None
    """The norm that the engine clips gradients to; 0: it does not; `None` before there is one."""

    def __init__(self, precision: Literal["32-true", "16-true", "16-mixed", "bf16-true", "bf16-mixed"]) -> None:
        if precision not in _DTYPES:
            raise ValueError(
                f"`precision={precision!r}` is not supported in DeepSpeed. Choose one of"
                f" {', '.join(map(repr, _DTYPES))}."
            )
        self.precision = precision
        self.clips_to: float | None = None
        self.dtype = _DTYPES[precision]

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Return the module: DeepSpeed converts it, and takes the weights in 32 bit from it before."""
        return module

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new parameters have the format, if it is a "true" one."""
        return DefaultDtype(self.dtype) if self.precision.endswith("true") else nullcontext()

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have the format, if it is a "true" one."""
        return self.module_init_context()

    def convert_input(self, data: Any) -> Any:
        """Convert the floating point tensors of a batch to the format."""
        return convert_floats(data, self.dtype)

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def backward(self, tensor: Tensor, model: Any, optimizer: Any = None, *args: Any, **kwargs: Any) -> None:
        """Let DeepSpeed's engine differentiate.

        Args:
            tensor: The loss.
            model: The engine.
            optimizer: Not used.
            args: Further arguments of the engine's `backward`.
            kwargs: Further arguments of the engine's `backward`.
        """
        model.backward(tensor, *args, **kwargs)

    def clip_gradients(
        self,
        optimizer: Any,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        """Check that this is what DeepSpeed does: it clips by norm when it steps, to what the run began with.

        Args:
            optimizer: The optimizer.
            clip_val: The bound.
            gradient_clip_algorithm: "norm".

        Raises:
            MisconfigurationException: Clipping by value is asked for, or another bound.
        """
        if clip_val and clip_val > 0 and gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            raise MisconfigurationException(
                f"`gradient_clip_algorithm='value'` (with `gradient_clip_val={clip_val!r}`) is not offered by"
                " DeepSpeed, which clips by the norm of all gradients. Choose `gradient_clip_algorithm='norm'`."
            )
        if clip_val and clip_val > 0 and self.clips_to not in (None, clip_val):
            raise MisconfigurationException(
                f"Gradients are to be clipped to {clip_val!r}, but DeepSpeed clips them itself when it steps, to"
                f" {self.clips_to!r} (0: not at all) in this run. Pass `Trainer(gradient_clip_val={clip_val!r})`; with"
                " manual optimization, `DeepSpeedStrategy(config={..., 'gradient_clipping': ...})`, and do not clip in"
                " the module."
            )

    def optimizer_step(
        self, optimizer: Any, model: Any = None, closure: Callable[[], Any] | None = None, **kwargs: Any
    ) -> Any:
        """Let DeepSpeed's engine step.

        Args:
            optimizer: Not used: the engine has its own.
            model: The engine.
            closure: Computes gradients; without it they are there already.
            kwargs: Further arguments of the engine's `step`.

        Returns:
            What the closure returned.
        """
        result = None if closure is None else closure()
        model.step(**kwargs)
        return result
