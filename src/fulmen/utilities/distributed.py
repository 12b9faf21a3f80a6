"""Collectives on tensors and objects of whatever shape, on top of `torch.distributed`.

Each of these must be called by all ranks of the group, in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fulmen.utilities.tree import apply_to_collection

__all__ = [
    "agree",
    "all_gather",
    "all_reduce",
    "broadcast_object",
    "broadcast_tensors",
    "gather_objects",
    "is_group_initialized",
    "is_mean",
    "resolve_reduce_op",
]

_MEANS = ("mean", "avg")


def is_group_initialized() -> bool:
    """Tell whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


# ---- reduce


def is_mean(reduce_op: Any) -> bool:
    """Tell whether a reduction is the mean: "mean", "avg" or `ReduceOp.AVG`."""
    if isinstance(reduce_op, str):
        return reduce_op.lower() in _MEANS
    return reduce_op is None or bool(reduce_op == dist.ReduceOp.AVG)


def resolve_reduce_op(reduce_op: Any) -> Any:
    """Return the operator of `torch.distributed` for a name.

    Args:
        reduce_op: "sum", "mean" ("avg"), "min", "max", "product", "band", "bor", "bxor" in any case, an operator, or
            `None` for the mean.

    Raises:
        ValueError: There is no such operator.
    """
    if is_mean(reduce_op):
        return dist.ReduceOp.AVG
    if not isinstance(reduce_op, str):
        return reduce_op
    name = {"prod": "PRODUCT"}.get(reduce_op.lower(), reduce_op.upper())
    if name not in dist.ReduceOp.RedOpType.__members__ or name in ("PREMUL_SUM", "UNUSED"):
        known = ["mean", "avg", "sum", "min", "max", "product", "band", "bor", "bxor"]
        raise ValueError(
            f"`reduce_op={reduce_op!r}` is not a way to reduce values over processes. Choose one of {known} or an"
            " operator of `torch.distributed.ReduceOp`."
        )
    return getattr(dist.ReduceOp, name)


@torch.no_grad()
def all_reduce(tensor: Tensor, group: Any | None = None, reduce_op: Any = "mean") -> Tensor:
    """Reduce a tensor over all ranks.

    The result is written into `tensor` and returned, except where that would be wrong: a tensor that is part of a graph
    stays as it is, and the mean of integers and booleans is a new tensor of floats.

    Args:
        tensor: What this rank contributes; the same shape and type on all ranks.
        group: The ranks; all by default.
        reduce_op: See `resolve_reduce_op`.

    Returns:
        The reduced tensor, outside of any graph.
    """
    operator = resolve_reduce_op(reduce_op)
    takes_mean = is_mean(reduce_op)
    in_place = not tensor.requires_grad and not (takes_mean and not (tensor.is_floating_point() or tensor.is_complex()))
    value = _reducible(tensor)
    if value.data_ptr() == tensor.data_ptr() and not in_place:
        value = value.clone()
    if takes_mean and not (value.is_floating_point() and dist.get_backend(group) == "nccl"):
        dist.all_reduce(value, op=dist.ReduceOp.SUM, group=group)  # gloo knows no mean
        count = dist.get_world_size(group)
        value = value.div_(count) if value.is_floating_point() else value / count
    else:
        dist.all_reduce(value, op=operator, group=group)
    if tensor.is_complex():
        value = torch.view_as_complex(value)
    if not in_place:
        return value if takes_mean or value.dtype == tensor.dtype else value.to(tensor.dtype)
    if value.data_ptr() != tensor.data_ptr():
        tensor.copy_(value)
    return tensor


def _reducible(tensor: Tensor) -> Tensor:
    """The same numbers as a dense tensor of a type that all backends can reduce; the tensor's memory if it is one."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    if tensor.dtype is torch.bool:
        return tensor.to(torch.uint8) if tensor.device.type != "cpu" else tensor.to(torch.int32)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.contiguous()


def agree(values: Iterable[int], op: str, group: Any | None = None) -> list[int]:
    """Reduce some integers over all ranks.

    Args:
        values: As many on all ranks.
        op: "max", "min" or "sum".
        group: A group that takes tensors on the CPU.

    Returns:
        The reduced integers.
    """
    tensor = torch.tensor(list(values), dtype=torch.int64)
    dist.all_reduce(tensor, op=resolve_reduce_op(op), group=group)
    return [int(value) for value in tensor.tolist()]


# ---- gather


def all_gather(
    tensors: list[Tensor],
    groups: list[Any] | None = None,
    *,
    sync_grads: bool = False,
    control_group: Any | None = None,
) -> list[Tensor | list[Tensor]]:
    """Gather tensors from all ranks.

    Args:
        tensors: What this rank contributes: as many on all ranks, of the same types, of any shapes.
        groups: For each tensor a group of the same ranks that takes it; the default group without it.
        sync_grads: Let gradients flow back to the ranks that the values came from, where they are summed.
        control_group: A group of these ranks, for small values; the default group without it.

    Returns:
        For each tensor those of all ranks: stacked, with a new first dimension of the number of ranks, if the shapes
        agree, else as a list by rank. Both give the tensor of each rank when iterated.

    Raises:
        RuntimeError: The ranks pass different numbers or types of tensors.
    """
    shapes = _shapes_by_rank(tensors, control_group)
    gathered: list[Tensor | list[Tensor]] = []
    for idx, tensor in enumerate(tensors):
        group = None if groups is None else groups[idx]
        per_rank = None if shapes is None else [of_rank[idx] for of_rank in shapes]
        if per_rank is None or len(set(per_rank)) == 1:
            gathered.append(_stack(tensor, group, sync_grads))
        else:
            gathered.append(_gather_uneven(tensor, per_rank, group, sync_grads))
    return gathered


def _shapes_by_rank(tensors: list[Tensor], group: Any | None) -> list[list[tuple[int, ...]]] | None:
    """The shapes that each rank passes; `None` if all pass the same."""
    own = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    digest = int.from_bytes(hashlib.blake2b(repr(own).encode(), digest_size=7).digest(), "big")
    probe = torch.tensor([digest, -digest], device=_device_of(group))
    dist.all_reduce(probe, op=dist.ReduceOp.MAX, group=group)
    highest, negative_lowest = probe.tolist()
    if highest == -negative_lowest:
        return None
    of_ranks: list[list[tuple[tuple[int, ...], str]]] = gather_objects(own, group)
    types = [[dtype for _, dtype in of_rank] for of_rank in of_ranks]
    if any(of_rank != types[0] for of_rank in types):
        raise RuntimeError(
            f"`all_gather` got tensors of different types: {dict(enumerate(types))} (by rank). They can't be put side"
            " by side. Gather as many tensors of the same types on each rank; an empty tensor stands for no data."
        )
    return [[shape for shape, _ in of_rank] for of_rank in of_ranks]


def _gather_uneven(
    tensor: Tensor, shapes: list[tuple[int, ...]], group: Any | None, sync_grads: bool
) -> Tensor | list[Tensor]:
    sizes = [int(torch.Size(shape).numel()) for shape in shapes]
    padded = nn.functional.pad(tensor.reshape(-1), (0, max(sizes) - tensor.numel()))
    stacked = _stack(padded, group, sync_grads)
    return [row[:size].view(shape) for row, size, shape in zip(stacked, sizes, shapes, strict=True)]


def _stack(tensor: Tensor, group: Any | None, sync_grads: bool) -> Tensor:
    if sync_grads and tensor.requires_grad:
        stacked: Tensor = _GatherWithGradients.apply(tensor, group)  # type: ignore[no-untyped-call]  # of torch
        return stacked
    return _stack_values(tensor.detach(), group)


def _stack_values(tensor: Tensor, group: Any | None) -> Tensor:
    value = tensor.contiguous()
    if value.is_complex():
        return torch.view_as_complex(_stack_values(torch.view_as_real(value), group))
    stacked = value.new_empty((dist.get_world_size(group), *value.shape))
    if value.ndim == 0:  # a view of a scalar's slot is what each rank writes to
        dist.all_gather(list(stacked.unbind()), value, group=group)
    else:
        # torch warns about the second name, on every rank, where it has the first
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(stacked.view(-1, *value.shape[1:]), value, group=group)
    return stacked


class _GatherWithGradients(torch.autograd.Function):
    """Stacks the tensors of all ranks; backward sums what the ranks have for this one's part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any | None) -> Tensor:
        ctx.group = group
        return _stack_values(tensor, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(torch.view_as_real(total) if total.is_complex() else total, group=ctx.group)
        return total[dist.get_rank(ctx.group)], None


def gather_objects(obj: Any, group: Any | None = None) -> list[Any]:
    """Return what each rank passed, by rank; objects are pickled.

    Args:
        obj: What this rank contributes.
        group: The ranks; all by default.
    """
    objects: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(objects, obj, group=group)
    return objects


# ---- broadcast


@dataclass(frozen=True, slots=True)
class _FromDevice:
    """A tensor that is on the CPU only for the way."""

    tensor: Tensor


def broadcast_object(obj: Any, src: int, device: torch.device, group: Any | None = None) -> Any:
    """Send a picklable object from one rank to all others.

    Args:
        obj: The object; only that of rank `src` matters.
        src: The global rank that sends.
        device: Where the receivers put tensors that the sender had on an accelerator.
        group: The ranks; all by default.

    Returns:
        The object of rank `src`; there it is `obj` itself.
    """
    is_source = dist.get_rank() == src
    packed = [apply_to_collection(obj, Tensor, _leave_device) if is_source else None]
    dist.broadcast_object_list(packed, src=src, group=group)
    return obj if is_source else apply_to_collection(packed[0], _FromDevice, lambda sent: sent.tensor.to(device))


def _leave_device(tensor: Tensor) -> Tensor | _FromDevice:
    return tensor if tensor.device.type in ("cpu", "meta") else _FromDevice(tensor.detach().cpu())


@torch.no_grad()
def broadcast_tensors(tensors: Iterable[Tensor], src: int = 0, group: Any | None = None) -> None:
    """Overwrite tensors with those of one rank.

    Args:
        tensors: The same number, shapes and types on all ranks.
        src: The global rank that sends.
        group: The ranks; all by default.
    """
    pending: list[tuple[Any, Callable[[], object] | None]] = []
    for tensor in tensors:
        value = tensor.detach()
        dense = torch.view_as_real(value) if value.is_complex() else value
        sent = dense.contiguous()
        write_back = None if sent.data_ptr() == dense.data_ptr() else _copier(dense, sent)
        pending.append((dist.broadcast(sent, src=src, group=group, async_op=True), write_back))
    for work, write_back in pending:
        work.wait()
        if write_back is not None:
            write_back()


def _copier(target: Tensor, source: Tensor) -> Callable[[], object]:
    return lambda: target.copy_(source)


def _device_of(group: Any | None) -> torch.device:
    """A device whose tensors the group takes."""
    backend = str(dist.get_backend(group))
    for device, known in dist.Backend.default_device_backend_map.items():
        if known == backend and device != "cpu":
            is_here = device != "mps"
            return torch.device(device, torch.accelerator.current_device_index()) if is_here else torch.device("cpu")
    return torch.device("cpu")
