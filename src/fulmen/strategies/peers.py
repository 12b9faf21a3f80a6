"""Whether processes that compute one model together agree on what must be the same for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

__all__ = ["PeerCheck", "share_values", "sum_parts_of_gradients", "whole_along"]

_TOLERANCE = 0.02
"""Relative. A wrong division changes norms by a factor; kernels that add in any order change a few digits."""
_FLOOR = 1e-5
"""Gradients that small, relative to all together, are not compared: what is left of them may be noise."""
_MARK = "_is_summed_by_fulmen"


def whole_along(tensor: Tensor, dimension: str) -> bool:
    """Tell whether the processes along a dimension of the mesh each hold the same part of a tensor.

    Args:
        tensor: A parameter or buffer.
        dimension: Name of the dimension of the mesh.
    """
    if not isinstance(tensor, DTensor):
        return True
    names = tensor.device_mesh.mesh_dim_names or ()
    return dimension not in names or tensor.placements[names.index(dimension)].is_replicate()


def share_values(module: nn.Module, mesh: DeviceMesh) -> None:
    """Give all processes the values of the first one, where they hold the same part of a tensor.

    Args:
        module: The module; its tensors are overwritten.
        mesh: Of all processes; its dimensions have names.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        local = _local(tensor.detach())
        for dimension in mesh.mesh_dim_names or ():
            along = mesh[dimension]
            if along.size() > 1 and not local.is_meta and whole_along(tensor, dimension):
                values = local.to(mesh.device_type).contiguous()
                dist.broadcast(values, group=along.get_group(), group_src=0)
                local.copy_(values)


def sum_parts_of_gradients(module: nn.Module) -> None:
    """Let gradients that come as parts of a sum, one part per process, be summed as soon as they are there.

    Optimizers and clipping take each gradient as it is. What `fully_shard` manages, it sums itself.

    Args:
        module: The module, divided.
    """
    for parameter in module.parameters():
        is_whole = isinstance(parameter, DTensor) and any(each.is_replicate() for each in parameter.placements)
        if is_whole and parameter.requires_grad and not hasattr(parameter, _MARK):
            setattr(parameter, _MARK, True)
            parameter.register_hook(_summed)  # type: ignore[no-untyped-call]  # of torch


def _summed(gradient: Any) -> Any:
    placements = getattr(gradient, "placements", ())
    if not any(each.is_partial() for each in placements):
        return gradient
    return gradient.redistribute(placements=[Replicate() if each.is_partial() else each for each in placements])


class PeerCheck:
    """Compares the loss and gradients of tensor parallel peers, after the 1st, 2nd, 4th, 8th ... backward pass.

    Peers get the same batch, so they must come to the same loss, and to the same gradients for each parameter that
    they hold together. They do not if a module computes on a part of the activations without saying so, if they drew
    other random numbers, or got other data. Nothing else would show it: training goes on, with wrong gradients.

    Args:
        mesh: Of all processes; its dimensions have names.
        dimension: Name of the dimension along which the peers are.
    """

    def __init__(self, mesh: DeviceMesh, dimension: str) -> None:
        self._mesh = mesh
        self._dimension = dimension
        self._num_passes = 0
        self._due = 1

    def after_backward(self, loss: Tensor, modules: Iterable[nn.Module]) -> None:
        """Compare, if it is due.

        Args:
            loss: What was differentiated.
            modules: Those that were divided, which the loss may come from.

        Raises:
            RuntimeError: The peers disagree.
        """
        self._num_passes += 1
        if self._num_passes < self._due or self._mesh[self._dimension].size() == 1:
            return
        names, gradients = [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                if parameter.grad is not None and whole_along(parameter, self._dimension):
                    names.append(name)
                    gradients.append(parameter.grad)
        self._due *= 2
        different = self._disagreement(loss, gradients)
        if different:
            self._raise_different([names[index] for index in different if index >= 0], differs=-1 in different)

    def _disagreement(self, loss: Tensor, gradients: Sequence[Tensor]) -> list[int]:
        """Indices of the gradients that differ; -1 for the loss."""
        along = self._mesh[self._dimension]
        parts = [_local(gradient) for gradient in gradients]
        own = [_local(loss.detach()).float().sum(), *(part.float().norm() for part in parts)]
        own += [part.float().sum() for part in parts]
        values = torch.stack([value.to(along.device_type) for value in own])
        shape = torch.tensor([len(own), -len(own)], device=values.device)
        dist.all_reduce(shape, op=dist.ReduceOp.MAX, group=along.get_group())
        if shape[0] != -shape[1]:  # sync: rarely
            return [-1]  # not even the same parameters have gradients
        gathered = [torch.empty_like(values) for _ in range(along.size())]
        dist.all_gather(gathered, values, group=along.get_group())
        table = torch.stack(gathered).double().cpu()
        spread = table.max(0).values - table.min(0).values
        norms = table[:, 1 : 1 + len(parts)].max(0).values
        total = float(norms.square().sum().sqrt())
        bound = _TOLERANCE * norms + _FLOOR * total
        wrong = (spread[1 : 1 + len(parts)] > bound) | (spread[1 + len(parts) :] > bound)
        found = [int(index) for index in wrong.nonzero().flatten()]
        loss_differs = float(spread[0]) > _TOLERANCE * float(table[:, 0].abs().max()) + 1e-6
        return [-1, *found] if loss_differs else found

    def _raise_different(self, names: list[str], *, differs: bool) -> None:
        size = self._mesh[self._dimension].size()
        shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        what = " and ".join(["the loss"] * differs + [f"the gradients of {shown}"] * bool(names))
        raise RuntimeError(
            f"The {size} processes that compute one model together (`tensor_parallel_size={size}`) disagree in {what},"
            " so training would go wrong. Either they got other batches or drew other random numbers: let the Trainer,"
            " or `fabric.setup_dataloaders`, share out the data, and seed all alike. Or a module computes on this"
            " process' part of the activations (its heads, its positions, its words) as if it were all of them: give a"
            " norm inside of attention the style 'local', norms on a divided sequence 'sequence', the layer that"
            " predicts words 'vocabulary'."
        )


def _local(tensor: Tensor) -> Tensor:
    """This process' part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
