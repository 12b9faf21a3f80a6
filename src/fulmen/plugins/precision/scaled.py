"""16-bit floats have a small range: gradients are computed of a multiple of the loss, and divided again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from fulmen.plugins.precision.precision import Precision
from fulmen.utilities.enums import GradClipAlgorithmType
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info

__all__ = ["ScaledPrecision"]


class ScaledPrecision(Precision):
    """The half of number formats with float16 that scales gradients; not used by itself.

    A step whose gradients are not finite is left out and the factor lowered. The factor is adapted after the step of an
    optimizer, unless another one has unscaled gradients that wait for their step.

    Args:
        scaler: Holds the factor; `None`: nothing is scaled.
    """

    interchangeable_with = ("MixedPrecision", "FSDPPrecision")

    def __init__(self, scaler: GradScaler | None) -> None:
        self.scaler = scaler
        self._num_backwards = 0
        # Since the scaler was adapted, by id of the optimizer: backward passes before its unscaling; who stepped.
        self._unscaled_at: dict[int, int] = {}
        self._stepped: set[int] = set()

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        """Multiply the loss by the factor of the scaler."""
        if self.scaler is None:
            return tensor
        self._num_backwards += 1
        scaled: Tensor = self.scaler.scale(tensor)
        return scaled

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer by the factor of the scaler.

        A second call before the next backward pass does nothing. Optimizers that do this themselves inside their `step`
        (those with an argument `grad_scaler`) are left alone.

        Args:
            optimizer: The optimizer.

        Raises:
            RuntimeError: It was called in an earlier step that was then not carried out; the gradients are a mixture.
        """
        if self.scaler is None or _unscales_itself(optimizer) or not self._has_gradients(optimizer):
            return
        if self._unscaled_at.get(id(optimizer)) == self._num_backwards:
            return
        if id(optimizer) in self._stepped:
            self._adapt_scale(self.scaler)
        self._unscale(self.scaler, optimizer)
        self._unscaled_at[id(optimizer)] = self._num_backwards

    def _unscale(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """Divide, and note whether all gradients are finite."""
        scaler.unscale_(optimizer)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        """Clip the gradients of an optimizer; see `Precision.clip_gradients`.

        Args:
            optimizer: The optimizer.
            clip_val: The bound; 0 or less: no clipping.
            gradient_clip_algorithm: Bound the total 2-norm ("norm") or each entry ("value").

        Raises:
            RuntimeError: The optimizer unscales its gradients itself, too late for clipping.
        """
        if clip_val > 0 and self.scaler is not None and _unscales_itself(optimizer):
            raise RuntimeError(
                f"Gradients cannot be clipped with `precision='16-mixed'` and the optimizer"
                f" `{type(optimizer).__name__}`: it takes the scaler as an argument and divides the gradients only"
                " inside its `step`. Set `gradient_clip_val=None`, use another optimizer, or `precision='bf16-mixed'`."
            )
        super().clip_gradients(optimizer, clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self, optimizer: Any, model: Any = None, closure: Callable[[], Any] | None = None, **kwargs: Any
    ) -> Any:
        """Update the parameters, if the gradients are finite.

        Args:
            optimizer: The optimizer, not wrapped.
            model: The user's module.
            closure: Computes gradients; with a scaler it is called once, before the step.
            kwargs: Further arguments of the optimizer's `step`.

        Returns:
            What the closure returned.

        Raises:
            MisconfigurationException: The optimizer needs to call the closure itself, and gradients are scaled.
        """
        if self.scaler is None:
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        if isinstance(optimizer, LBFGS):
            raise MisconfigurationException(
                f"`precision='16-mixed'` cannot be used with `{type(optimizer).__name__}`: the optimizer evaluates the"
                " loss several times within a step, and scaled gradients allow it once."
                " Choose `precision='bf16-mixed'` or '32-true', or another optimizer."
            )
        result = None if closure is None else closure()
        if self._has_gradients(optimizer):  # none after a step that returned `None`; the scaler would complain
            self._scaled_step(self.scaler, optimizer, **kwargs)
        elif id(optimizer) in self._unscaled_at:  # a hook dropped them since: no step, but the factor is adapted
            self._settle(self.scaler, optimizer)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scaler, empty without one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of a scaler; an empty one leaves the scaler as it is.

        Args:
            state_dict: What `state_dict` returned in an earlier run.

        Raises:
            ValueError: It is not the state of a gradient scaler.
        """
        if not state_dict:
            return
        if self.scaler is None:
            rank_zero_info(
                f"The checkpoint holds the state of a gradient scaler, which `precision={self.precision!r}` does not"
                " need: it is left out."
            )
            return
        missing = sorted(self.scaler.state_dict().keys() - state_dict.keys())
        if missing:
            raise ValueError(
                f"The state of the gradient scaler lacks {', '.join(map(repr, missing))}; it has {sorted(state_dict)},"
                f" so it is not that of a `{type(self.scaler).__name__}`. Continue with the precision plugin that wrote"
                " the checkpoint, or remove the entry of that name to start with a new scale."
            )
        self.scaler.load_state_dict(state_dict)

    def _scaled_step(self, scaler: GradScaler, optimizer: Optimizer, **kwargs: Any) -> None:
        if id(optimizer) in self._stepped:
            self._adapt_scale(scaler)
        scaler.step(optimizer, **kwargs)
        self._stepped.add(id(optimizer))
        self._settle(scaler, optimizer)

    def _settle(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        self._unscaled_at.pop(id(optimizer), None)
        if not self._unscaled_at:  # adapting makes the scaler forget whose gradients are unscaled
            self._adapt_scale(scaler)

    def _adapt_scale(self, scaler: GradScaler) -> None:
        scaler.update()
        self._stepped.clear()
        self._unscaled_at.clear()

    def _has_gradients(self, optimizer: Optimizer) -> bool:
        return any(parameter.grad is not None for parameter in self.main_params(optimizer))


def _unscales_itself(optimizer: Optimizer) -> bool:
    """Whether the optimizer divides by the scale inside `step`, given the scaler (as Apex does; torch's do not)."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    return "grad_scaler" in inspect.signature(optimizer.step).parameters
