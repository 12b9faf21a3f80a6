"""A check that programs with a loop of their own call."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_finite_loss"]


def check_finite_loss(loss: Tensor | None) -> None:
    """Refuse a loss that is NaN or infinite.

    The Trainer itself does not call it: that would make the CPU wait for the GPU at each step.

    Args:
        loss: The loss; `None`, as of a skipped batch, is fine.

    Raises:
        ValueError: An entry is not finite.
    """
    if loss is not None and not torch.isfinite(loss).all():  # sync: the caller wants to know now
        raise ValueError(
            f"The loss returned in `training_step` is {loss}, so the weights would be useless. Find the operation"
            " with `Trainer(detect_anomaly=True)`, lower the learning rate, or set `gradient_clip_val`."
        )
