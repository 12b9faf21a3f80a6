"""How much memory training needs for weights, gradients and optimizers, before the first step."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import LBFGS, Optimizer

__all__ = ["MB", "num_bytes", "optimizer_bytes", "training_memory"]

MB = 1e6  # bytes
_KERNELS = {"foreach": False, "fused": False, "capturable": False}  # those that the meta device has


def training_memory(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> dict[str, float | None]:
    """Estimate what a model needs on the device of this process, without activations and temporary values.

    Args:
        model: The model; shared parameters count once, lazy ones not yet.
        optimizers: Those that train it.

    Returns:
        MB (1e6 bytes) of `weights`, `buffers`, `gradients` (as large as the weights that are trained) and, if there are
        optimizers, of their `optimizer` state; `None` where that cannot be known before their first step.
    """
    states = [optimizer_bytes(optimizer) for optimizer in optimizers]
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    memory: dict[str, float | None] = {
        "weights": num_bytes(model.parameters()) / MB,
        "buffers": num_bytes(model.buffers()) / MB,
        "gradients": num_bytes(trained) / MB,
    }
    if states:
        memory["optimizer"] = None if None in states else sum(filter(None, states)) / MB
    return memory


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the size of tensors in bytes; that of those which are divided among ranks on this rank."""
    return sum(
        _local(tensor).numel() * tensor.element_size()
        for tensor in tensors
        if not isinstance(tensor, UninitializedParameter)
    )


def _local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)  # of a DTensor
    return tensor if to_local is None else to_local()


def optimizer_bytes(optimizer: Optimizer) -> int | None:
    """Return the size of an optimizer's state, or before its first step what it will be.

    Args:
        optimizer: The optimizer; it is not modified.

    Returns:
        Bytes. For an optimizer of torch that has not stepped they are found by a step on the meta device, in which
        nothing is computed. `None` for others.
    """
    state: Mapping[Any, dict[str, Any]] = optimizer.state
    if not state:
        if not type(optimizer).__module__.startswith("torch.optim.") or isinstance(optimizer, LBFGS):
            return None  # it may hold its parameters elsewhere, too
        state = _state_after_step(optimizer)
    return num_bytes(value for each in state.values() for value in each.values() if isinstance(value, Tensor))


def _state_after_step(optimizer: Optimizer) -> dict[Any, dict[str, Any]]:
    double: Any = copy.copy(optimizer)
    double.state = defaultdict(dict)
    double.param_groups = [
        {**group, **{name: value for name, value in _KERNELS.items() if name in group}, "params": _doubles(group)}
        for group in optimizer.param_groups
    ]
    double._optimizer_step_pre_hooks = OrderedDict()
    double._optimizer_step_post_hooks = OrderedDict()
    type(optimizer).step(double)  # not `double.step`, which schedulers bind to the optimizer
    return dict(double.state)


def _doubles(group: dict[str, Any]) -> list[nn.Parameter]:
    doubles = []
    for parameter in group["params"]:
        if parameter.requires_grad and not isinstance(parameter, UninitializedParameter):
            local = _local(parameter.detach())
            double = nn.Parameter(torch.empty_like(local, device="meta"))
            double.grad = torch.empty_like(double)
            doubles.append(double)
    return doubles
