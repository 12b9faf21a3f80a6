"""What to do about errors of torch that mostly have one cause, where weights are divided."""

from __future__ import annotations

__all__ = ["add_hint"]

_HINTS = {  # by a part of the error's text
    "is invalid for input of size": (
        "a layer with the style 'colwise' gives each process its share of the outputs only, e.g. of the heads. Let the"
        " shape follow: `.view(batch, length, -1, head_dim)`, not `.view(batch, length, num_heads, ...)`."
    ),
    "shapes cannot be multiplied": (
        "a layer with the style 'colwise' gives each process its share of the outputs only. The layer that takes them"
        " has to be 'rowwise'; or let the first one be 'colwise_gather', which puts the outputs together."
    ),
    "must have same reduction dim": (
        "a layer with the style 'rowwise' takes the share of the inputs that a 'colwise' layer before it gives. Add"
        " that one to the plan, or leave this layer whole."
    ),
    "got mixed torch.Tensor and DTensor": (
        "some of these tensors are divided among processes (`DTensor`) and others are whole. For optimizers, leave"
        " `fused=True` and `foreach=True` out; clip by `self.clip_gradients(...)`, not by torch's function; of outputs"
        " under `loss_parallel`, take `outputs.full_tensor()` for metrics."
    ),
}


def add_hint(exception: BaseException) -> None:
    """Add to an error of torch what to do about it, once.

    Args:
        exception: In place; others than those that are known stay as they are.
    """
    text = str(exception)
    if not isinstance(exception, RuntimeError) or "HINT (fulmen)" in text:
        return
    hint = next((hint for part, hint in _HINTS.items() if part in text), None)
    if hint is not None:
        exception.args = (f"{text}\nHINT (fulmen): {hint}",)
