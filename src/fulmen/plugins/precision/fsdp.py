"""The number format of modules that are sharded by FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from fulmen.plugins.precision.contexts import DefaultDtype, ReusableAutocast, convert_floats
from fulmen.plugins.precision.scaled import ScaledPrecision

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy

__all__ = ["FSDPPrecision"]

_DTYPES = {
    "16-true": torch.float16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "32-true": None,
}
_NO_CONTEXT = nullcontext()


class FSDPPrecision(ScaledPrecision):
    """How sharded weights are gathered, computed with, and how their gradients are reduced.

    ============  =============  ==============  =========================  ======================
    precision     shards         gathered as     computed                   gradients reduced in
    ============  =============  ==============  =========================  ======================
    "32-true"     as they are    as they are     as they are                the type of the shards
    "bf16-mixed"  as they are    bfloat16        by autocast, bfloat16      float32
    "16-mixed"    as they are    float16         by autocast, float16       float32, scaled
    "bf16-true"   bfloat16       bfloat16        bfloat16                   bfloat16
    "16-true"     float16        float16         float16                    float16
    ============  =============  ==============  =========================  ======================

    The mixed formats send half the bytes of "32-true" when weights are gathered. Operations that autocast keeps in 32
    bit (softmax, losses, normalization) are in 32 bit here, too; batch normalization keeps its weights in 32 bit.

    With "16-mixed" a gradient that is not finite on one rank is seen by all of them, so all leave the step out.

    Args:
        precision: One of the five.
        scaler: Used for "16-mixed" instead of a `torch.amp.GradScaler` with its defaults.

    Raises:
        ValueError: Another precision is given, or a scaler for one that does not scale.
    """

    def __init__(
        self,
        precision: Literal["32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"],
        scaler: GradScaler | None = None,
    ) -> None:
        if precision not in _DTYPES:
            raise ValueError(
                f"`FSDPPrecision(precision={precision!r})` is not known: FSDP gathers and reduces in 32 or 16 bit."
                f" Choose one of {', '.join(map(repr, _DTYPES))}."
            )
        if precision != "16-mixed" and scaler is not None:
            raise ValueError(
                f"`FSDPPrecision(precision={precision!r}, scaler={scaler!r})` cannot be: gradients are scaled only"
                " where weights are in 32 bit and computation is in float16. Remove the scaler, or choose"
                " precision='16-mixed'."
            )
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "16-mixed" and scaler is None:
            scaler = GradScaler(device=device_type)
        super().__init__(scaler)
        self.precision = precision
        self._dtype = _DTYPES[precision]
        self._max_over_ranks: Callable[[Tensor], Tensor] | None = None
        self._context = self._context_on(device_type)

    def _context_on(self, device_type: str) -> AbstractContextManager[Any]:
        if self._dtype is None:
            return _NO_CONTEXT
        if self.precision.endswith("-true"):
            return DefaultDtype(self._dtype)
        return ReusableAutocast(device_type, self._dtype, cache_enabled=False)

    def take_place(self, device_type: str, max_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Learn where the run computes; for strategies, before the first step.

        Args:
            device_type: "cuda", "cpu" ...
            max_over_ranks: Replaces a tensor by the largest of all ranks.
        """
        self._context = self._context_on(device_type)
        self._max_over_ranks = max_over_ranks

    @property
    def is_plain(self) -> bool:
        """Whether the methods of a step do nothing, so that a loop may leave them out: in 32 bit."""
        return self._dtype is None and type(self) is FSDPPrecision

    @property
    def mixed_precision_config(self) -> MixedPrecisionPolicy:
        """What `fully_shard` gets as `mp_policy`."""
        from torch.distributed.fsdp import MixedPrecisionPolicy

        if self._dtype is None:
            return MixedPrecisionPolicy()
        if self.precision.endswith("-true"):
            return MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=self._dtype)
        # autocast converts inputs operation by operation; targets in the batch stay as exact as they are
        return MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    # ---- conversions

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert floating point parameters and buffers to 16 bit, in place, for "16-true" and "bf16-true"."""
        if not self.precision.endswith("-true") or self._dtype is None:
            return module
        return module.half() if self._dtype is torch.float16 else module.bfloat16()

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new parameters have the type of the shards."""
        return self.tensor_init_context()

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have the type of the shards."""
        return self._context if self.precision.endswith("-true") else _NO_CONTEXT

    def convert_input(self, data: Any) -> Any:
        """Convert the floating point tensors of a batch to 16 bit, for "16-true" and "bf16-true"."""
        return convert_floats(data, self._dtype) if self.precision.endswith("-true") and self._dtype else data

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type, unless all is in 32 bit."""
        return data if self._dtype is None else convert_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context of `forward`; always the same object."""
        return self._context

    # ---- scaled gradients

    def _unscale(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """Divide, and let all ranks know of gradients that are not finite on one."""
        super()._unscale(scaler, optimizer)
        if self._max_over_ranks is not None:
            for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
                found.copy_(self._max_over_ranks(found))

    def _scaled_step(self, scaler: GradScaler, optimizer: Optimizer, **kwargs: Any) -> None:
        self.unscale_gradients(optimizer)  # else the scaler would do it inside its step, and ask no other rank
        super()._scaled_step(scaler, optimizer, **kwargs)
