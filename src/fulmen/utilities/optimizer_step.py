"""Optimizer calls without torch's per-call bookkeeping, where nobody is listening to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

__all__ = ["clear_gradients", "quick_step"]


def quick_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return a function that does what `optimizer.step()` does, about 10 us faster.

    `torch.optim.Optimizer` wraps every `step` to open a profiler record and to run step hooks. The wrapper is passed by
    only while no profiler runs and no hook is registered, which is looked up at each call; anything else about
    `step` that is not torch's own (an instance attribute, a subclass that hides the wrapper) gets the normal call.
    """
    wrapper = type(optimizer).step
    inner = getattr(wrapper, "__wrapped__", None)
    needed = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if inner is None or not getattr(wrapper, "hooked", False) or not all(hasattr(optimizer, name) for name in needed):
        return optimizer.step
    own = optimizer.__dict__.get("step")
    if own is not None and not hasattr(own, "_wrapped_by_lr_sched"):
        return optimizer.step
    pre_hooks, post_hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    global_pre = getattr(torch_optimizer, "_global_optimizer_pre_hooks", {})
    global_post = getattr(torch_optimizer, "_global_optimizer_post_hooks", {})
    profiler_is_on = torch._C._autograd._profiler_enabled
    # a scheduler's own wrapper notes that the optimizer stepped before it; once is enough
    noted = own is None

    def step() -> Any:
        nonlocal noted
        if noted and not (pre_hooks or post_hooks or global_pre or global_post or profiler_is_on()):
            return inner(optimizer)
        noted = True
        return optimizer.step()

    return step


def clear_gradients(optimizer: Optimizer) -> None:
    """Do what `optimizer.zero_grad()` does, without its profiler record."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
