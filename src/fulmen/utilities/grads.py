"""Norms of gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["grad_norm"]


def grad_norm(module: nn.Module, norm_type: float | int | str, group_separator: str = "/") -> dict[str, float | Tensor]:
    """Compute the norm of each parameter's gradient and of all together.

    Args:
        module: Module whose parameters are read after `backward`; parameters without gradient are left out.
        norm_type: Order of the norm, positive; "inf" is the largest absolute value.
        group_separator: What stands between the name of the group and that of the parameter.

    Returns:
        `grad_<p>_norm/<parameter>` for each parameter and `grad_<p>_norm_total`, as tensors on the parameters' device;
        empty if nothing has a gradient.

    Raises:
        ValueError: The order is not positive.

    Example::

        def on_before_optimizer_step(self, optimizer):
            self.log_dict(grad_norm(self, norm_type=2))
    """
    order = float(norm_type)
    if not order > 0:
        raise ValueError(
            f"`norm_type` must be a positive number or 'inf' (infinity norm), got {norm_type!r}, for which no norm"
            " exists. Use e.g. 2."
        )
    norms: dict[str, float | Tensor] = {}
    each: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            norm = torch.linalg.vector_norm(parameter.grad.detach(), order)
            norms[f"grad_{order}_norm{group_separator}{name}"] = norm
            each.append(norm)
    if each:
        same_place = [norm.to(each[0].device, torch.promote_types(norm.dtype, torch.float32)) for norm in each]
        norms[f"grad_{order}_norm_total"] = torch.linalg.vector_norm(torch.stack(same_place), order)
    return norms
