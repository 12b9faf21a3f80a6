"""Mixed precision: weights in 32 bit, computation in 16 where that is safe."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch.amp import GradScaler

from fulmen.plugins.precision.contexts import ReusableAutocast, convert_floats
from fulmen.plugins.precision.scaled import ScaledPrecision
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["MixedPrecision"]

_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class MixedPrecision(ScaledPrecision):
    """Automatic mixed precision by `torch.autocast`; float16 with scaled gradients.

    With "16-mixed" small gradients would vanish, so the loss is multiplied by a factor and the gradients are divided by
    it. A step whose gradients are not finite is left out and the factor lowered. The factor is adapted after the step
    of an optimizer, unless another one has unscaled gradients that wait for their step.

    Autocast keeps no cache of converted weights, for the Trainer as for Fabric, where Lightning keeps one: it saves
    nothing where each weight is used once, and after a step inside the block it would go on with the weights of before.

    Args:
        precision: "16-mixed" (float16) or "bf16-mixed" (bfloat16, needs no scaling).
        device: Type of the device, e.g. "cuda" or "cpu".
        scaler: Used for "16-mixed" instead of a `torch.amp.GradScaler` with its defaults.

    Raises:
        ValueError: Another precision is given.
        MisconfigurationException: A scaler is given for "bf16-mixed".
    """

    def __init__(
        self, precision: Literal["16-mixed", "bf16-mixed"], device: str, scaler: GradScaler | None = None
    ) -> None:
        if precision not in _DTYPES:
            raise ValueError(
                f"`MixedPrecision(precision={precision!r})` is not known: it computes partly in 16 bit."
                f" Choose one of {', '.join(map(repr, _DTYPES))}."
            )
        if precision == "bf16-mixed" and scaler is not None:
            raise MisconfigurationException(
                f"`MixedPrecision(precision='bf16-mixed', scaler={scaler!r})` cannot be: bfloat16 has the range of"
                " float32, and its gradients are not scaled. Remove the scaler, or choose precision='16-mixed'."
            )
        if precision == "16-mixed" and scaler is None:
            scaler = GradScaler(device=device)
        super().__init__(scaler)
        self.precision = precision
        self.device = device
        self._dtype = _DTYPES[precision]
        self._context = ReusableAutocast(device, self._dtype, cache_enabled=False)

    def autocast_context_manager(self) -> AbstractContextManager[Any]:
        """Return a new `torch.autocast` with the settings of this run."""
        return torch.autocast(self.device, dtype=self._dtype, cache_enabled=False)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the autocast context; always the same object."""
        return self._context

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type."""
        return convert_floats(data, torch.get_default_dtype())
