"""What steps return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["loss_in"]


def loss_in(outputs: Any) -> Any:
    """Return the loss of a step.

    Args:
        outputs: What `training_step` returned: the loss itself, or a mapping that may have it under "loss".

    Returns:
        The loss; `None` if there is none.
    """
    return outputs.get("loss") if isinstance(outputs, Mapping) else outputs
