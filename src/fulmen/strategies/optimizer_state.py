"""Where the state of an optimizer lives."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from fulmen.utilities.tree import move_data_to_device

__all__ = ["move_optimizer_state"]


def move_optimizer_state(optimizer: Optimizer, device: torch.device) -> None:
    """Move the tensors of an optimizer's state.

    Args:
        optimizer: The optimizer; modified in place.
        device: Where to. Step counters stay on the CPU, unless the optimizer counts on the device (`capturable` or
            `fused`).
    """
    for group in optimizer.param_groups:
        counts_on_device = bool(group.get("capturable") or group.get("fused"))
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name != "step" or counts_on_device or device.type == "cpu":
                    state[name] = move_data_to_device(value, device)
