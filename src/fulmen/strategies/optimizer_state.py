"""Where the state of an optimizer lives: on which device, on which rank."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.optim import Optimizer

from fulmen.utilities.tree import move_data_to_device

__all__ = ["is_sharded", "move_optimizer_state", "whole_optimizer_state"]


def move_optimizer_state(optimizer: Optimizer, device: torch.device) -> None:
    """Move the tensors of an optimizer's state.

    Args:
        optimizer: The optimizer; modified in place.
        device: Where to. Step counters stay on the CPU, unless the optimizer counts on the device (`capturable` or
            `fused`).
    """
    if is_sharded(optimizer):
        optimizer = optimizer.optim  # type: ignore[attr-defined]  # of this rank's share
    for group in optimizer.param_groups:
        counts_on_device = bool(group.get("capturable") or group.get("fused"))
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name != "step" or counts_on_device or device.type == "cpu":
                    state[name] = move_data_to_device(value, device)


def is_sharded(optimizer: object) -> bool:
    """Tell whether an optimizer is a `ZeroRedundancyOptimizer`, which keeps only a share of the state on each rank."""
    defining = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")  # not loaded: there is none
    return defining is not None and isinstance(optimizer, defining.ZeroRedundancyOptimizer)


def whole_optimizer_state(optimizer: Any, *, is_global_zero: bool) -> dict[str, Any]:
    """Return the state of an optimizer, on rank 0 whole; all ranks must call this.

    Args:
        optimizer: The optimizer; a sharded one sends its shares to rank 0.
        is_global_zero: Whether this is rank 0.

    Returns:
        The state; empty on the other ranks if it is sharded.
    """
    if is_sharded(optimizer):
        optimizer.consolidate_state_dict(to=0)
        if not is_global_zero:
            return {}
    state: dict[str, Any] = optimizer.state_dict()
    return state
