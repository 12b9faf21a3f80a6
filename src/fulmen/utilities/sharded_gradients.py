"""Norms and bounds of gradients of which each rank holds a part."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["clip_gradients_by_norm", "clip_gradients_by_value", "has_shards", "total_norm"]


def has_shards(tensors: Iterable[Any]) -> bool:
    """Tell whether any of some tensors is spread over ranks, without importing what spreads them."""
    defining = sys.modules.get("torch.distributed.tensor")  # not loaded: nothing is spread
    return defining is not None and any(isinstance(tensor, defining.DTensor) for tensor in tensors)


def clip_gradients_by_norm(
    parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale gradients so that their total norm is at most `max_norm`; all ranks that hold a part must call it.

    As `torch.nn.utils.clip_grad_norm_`, also for parameters on several meshes, and for those that are whole.

    Args:
        parameters: Whose gradients are meant.
        max_norm: The bound.
        norm_type: Which norm.
        error_if_nonfinite: Raise if the norm is not finite.

    Returns:
        The total norm before clipping, whole and equal on all ranks.

    Raises:
        RuntimeError: The norm is not finite, and that is to be an error.
    """
    parameters = list(parameters)
    if not has_shards(parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = total_norm(gradients, norm_type)
    if error_if_nonfinite and not bool(norm.isfinite()):  # sync: the user asked for it
        raise RuntimeError(
            f"The total norm of order {norm_type} of the gradients is {norm.item()}, so they can't be clipped to"
            f" {max_norm}. Look for the operation that overflows, or pass `error_if_nonfinite=False`."
        )
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for same in _by_device_and_type([_local(gradient) for gradient in gradients]):
        torch._foreach_mul_(same, factor.to(same[0].device))
    return norm


def clip_gradients_by_value(parameters: Iterable[nn.Parameter], bound: float) -> None:
    """Clamp each entry of the gradients to [-bound, bound]; each rank does so with its own entries.

    Args:
        parameters: Whose gradients are meant.
        bound: The bound.
    """
    parameters = list(parameters)
    if not has_shards(parameters):
        torch.nn.utils.clip_grad_value_(parameters, bound)
        return
    gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    for same in _by_device_and_type(gradients):
        torch._foreach_clamp_min_(same, -bound)
        torch._foreach_clamp_max_(same, bound)


def total_norm(tensors: Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
    """Return the norm of all tensors together, as one; all ranks that hold a part must call it.

    Each rank reduces its parts; the sums of powers are added once over the ranks that hold different parts. A tensor
    that is whole on some ranks counts once.

    Args:
        tensors: Sharded or whole, of any types and on any meshes.
        norm_type: The order of the norm, e.g. 2.0 or `inf`.

    Returns:
        The norm, equal on all ranks; zero without tensors.
    """
    norm_type = float(norm_type)
    by_ranks: dict[Any, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_ranks[_ranks_with_other_parts(tensor)].append(_local(tensor).detach())
    powers = [_over_ranks(_power_sum(parts, norm_type), key, norm_type) for key, parts in by_ranks.items()]
    if not powers:
        return torch.zeros(())
    together = torch.stack([power.to(powers[0].device) for power in powers])
    return together.max() if math.isinf(norm_type) else together.sum() ** (1.0 / norm_type)


def _local(tensor: Tensor) -> Tensor:
    """The part that this rank holds; what is done to it in place, is done to the tensor."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)  # `to_local()` would be recorded for autograd
    return getattr(local, "elem", local) if type(local).__name__ == "AsyncCollectiveTensor" else local


def _ranks_with_other_parts(tensor: Tensor) -> Any:
    """Mesh and axes along which ranks hold different parts; `None` if the tensor is whole."""
    if not has_shards([tensor]):
        return None
    spread: Any = tensor
    axes = tuple(axis for axis, placement in enumerate(spread.placements) if not placement.is_replicate())
    if any(spread.placements[axis].is_partial() for axis in axes):
        raise RuntimeError(
            "A gradient is spread over ranks as parts of a sum (`Partial`), whose norm is not that of the parts."
            " Redistribute it first, e.g. `parameter.grad.redistribute(placements=parameter.placements)`."
        )
    return (spread.device_mesh, axes) if axes else None


def _power_sum(parts: list[Tensor], norm_type: float) -> Tensor:
    """The sum of |entry| ** norm_type; for the infinity norm the largest |entry|."""
    device = parts[0].device
    parts = [part for part in parts if part.numel()]  # a rank may have nothing of a small tensor
    if not parts:
        return torch.zeros((), device=device)
    wide = torch.float64 if any(part.dtype in (torch.float64, torch.complex128) for part in parts) else torch.float32
    norms = [
        norm.to(device, wide) for same in _by_device_and_type(parts) for norm in torch._foreach_norm(same, norm_type)
    ]
    stacked = torch.stack(norms)
    return stacked.max() if math.isinf(norm_type) else (stacked**norm_type).sum()


def _over_ranks(power: Tensor, key: Any, norm_type: float) -> Tensor:
    if key is None:
        return power
    mesh, axes = key
    operation = dist.ReduceOp.MAX if math.isinf(norm_type) else dist.ReduceOp.SUM
    if power.device.type != mesh.device_type:  # gradients that were offloaded: the mesh moves tensors of its device
        power = power.to(torch.device(mesh.device_type, torch.accelerator.current_device_index()))
    for axis in axes:
        dist.all_reduce(power, op=operation, group=mesh.get_group(axis))
    return power


def _by_device_and_type(tensors: list[Tensor]) -> list[list[Tensor]]:
    groups: dict[Any, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device, tensor.dtype].append(tensor)
    return list(groups.values())
