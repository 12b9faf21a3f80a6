"""Optimizer calls without torch's per-call bookkeeping, where nobody is listening to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

__all__ = ["clear_gradients", "clears_plainly", "quick_step"]

_profiler_is_on: Callable[[], bool] = torch._C._autograd._profiler_enabled
# all functions that torch's wrapper of `step` makes share their code, whatever name they were given
_CODE_OF_WRAPPER = Optimizer.profile_hook_step(lambda: None).__code__


def quick_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return a function that does what `optimizer.step()` does, about 10 us faster.

    `torch.optim.Optimizer` wraps every `step` to open a profiler record and to run step hooks. The wrapper is passed by
    only while no profiler runs, no hook is registered and `step` is not replaced on the object, which is looked up at
    each call. A `step` that is not wrapped as torch does it (by a decorator of the user's, or not at all) gets the
    normal call.

    Args:
        optimizer: The optimizer.
    """
    wrapper = type(optimizer).step
    if getattr(wrapper, "__code__", None) is not _CODE_OF_WRAPPER or not isinstance(optimizer, Optimizer):
        return optimizer.step
    inner = wrapper.__wrapped__  # type: ignore[attr-defined]  # functools.wraps
    attributes = optimizer.__dict__
    pre_hooks, post_hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    global_pre, global_post = torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
    passed_by: Any = None  # what stands in `optimizer.step` and need not be called

    def step() -> Any:
        nonlocal passed_by
        own = attributes.get("step")
        if own is passed_by and not (pre_hooks or post_hooks or global_pre or global_post or _profiler_is_on()):
            return inner(optimizer)
        # a scheduler replaces `step` to note that the optimizer stepped before it; once is enough
        passed_by = own if getattr(own, "_wrapped_by_lr_sched", False) and vars(own)["__wrapped__"] is wrapper else None
        return optimizer.step()

    return step


def clears_plainly(optimizer: Optimizer) -> bool:
    """Tell whether the optimizer's `zero_grad` is torch's own, so that `clear_gradients` does the same."""
    return getattr(type(optimizer), "zero_grad", None) is Optimizer.zero_grad and "zero_grad" not in vars(optimizer)


def clear_gradients(optimizer: Optimizer) -> None:
    """Do what `optimizer.zero_grad()` does, with its profiler record only while a profiler runs."""
    if _profiler_is_on():
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
