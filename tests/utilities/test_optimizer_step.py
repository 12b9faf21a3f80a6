"""The quick step does what `optimizer.step()` does, for everybody who listens."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.optim.lr_scheduler import StepLR

from fulmen.utilities.optimizer_step import clear_gradients, clears_plainly, quick_step


def sgd(kind: type[Optimizer] = SGD, **settings: Any) -> Any:
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    return kind([parameter], lr=0.1, **settings)  # type: ignore[call-arg]


def value_of(optimizer: Any) -> float:
    return float(optimizer.param_groups[0]["params"][0].detach())


def is_quick(step: Any) -> bool:
    return getattr(step, "__name__", "") == "step" and "quick_step" in getattr(step, "__qualname__", "")


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_it_computes_what_step_computes(kind: Any) -> None:
    quick, normal = sgd(kind, weight_decay=0.1), sgd(kind, weight_decay=0.1)
    step = quick_step(quick)
    for _ in range(3):
        step()
        normal.step()

    assert is_quick(step)
    assert value_of(quick) == value_of(normal)


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks_of_the_optimizer_are_called_while_registered(register: str) -> None:
    optimizer, calls = sgd(), []
    step = quick_step(optimizer)
    step()
    handle = getattr(optimizer, register)(lambda *_: calls.append(1))
    step()
    handle.remove()
    step()

    assert calls == [1]
    assert value_of(optimizer) == pytest.approx(0.7)


@pytest.mark.parametrize("register", ["register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"])
def test_hooks_of_all_optimizers_are_called_while_registered(register: str) -> None:
    optimizer, calls = sgd(), []
    step = quick_step(optimizer)
    handle = getattr(torch_optimizer, register)(lambda *_: calls.append(1))
    try:
        step()
    finally:
        handle.remove()
    step()

    assert calls == [1]


def test_a_profiler_sees_step_and_clearing() -> None:
    optimizer = sgd()
    step = quick_step(optimizer)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
        clear_gradients(optimizer)

    assert {"Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"} <= {e.key for e in profiler.key_averages()}


@pytest.mark.parametrize("made_first", ["step", "scheduler"])
def test_a_scheduler_learns_that_the_optimizer_stepped(made_first: str) -> None:
    optimizer = sgd()
    if made_first == "step":
        step = quick_step(optimizer)
        step()
        scheduler = StepLR(optimizer, 1)
    else:
        scheduler = StepLR(optimizer, 1)
        step = quick_step(optimizer)
    step()
    scheduler.step()  # would warn of the wrong order
    step()

    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_step_that_is_replaced_later_is_called() -> None:
    optimizer, calls = sgd(), []
    step = quick_step(optimizer)
    step()
    optimizer.step = lambda: calls.append(1)
    step()
    step()
    del optimizer.step
    step()

    assert calls == [1, 1]
    assert value_of(optimizer) == pytest.approx(0.8)


def test_a_method_that_was_put_in_place_before_a_scheduler_is_called_each_time() -> None:
    optimizer, calls = sgd(), []

    def own(self: SGD, closure: Any = None) -> None:
        calls.append(1)

    optimizer.step = own.__get__(optimizer)
    StepLR(optimizer, 1)
    step = quick_step(optimizer)
    step()
    step()

    assert calls == [1, 1]


def test_a_step_that_only_looks_wrapped_by_torch_is_called() -> None:
    calls: list[int] = []

    @functools.wraps(SGD.step)
    def decorated(self: SGD, closure: Any = None) -> Any:
        calls.append(1)
        return SGD.step(self, closure)

    optimizer = sgd(type("Decorated", (SGD,), {"step": decorated}))
    step = quick_step(optimizer)
    step()

    assert not is_quick(step)
    assert calls == [1]


def test_a_subclass_with_its_own_step_is_stepped_by_it() -> None:
    class Twice(SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            return super().step(closure)

    optimizer = sgd(Twice)
    quick_step(optimizer)()

    assert value_of(optimizer) == pytest.approx(0.8)


def test_an_object_that_is_no_torch_optimizer_gets_the_normal_call() -> None:
    class Duck:
        def step(self) -> str:
            return "stepped"

    assert quick_step(Duck())() == "stepped"  # type: ignore[arg-type]


def test_clearing_frees_all_gradients() -> None:
    optimizer = sgd()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    clear_gradients(optimizer)

    assert [p.grad for group in optimizer.param_groups for p in group["params"]] == [None, None]


def test_only_torchs_own_zero_grad_is_replaced() -> None:
    class Own(SGD):
        def zero_grad(self, set_to_none: bool = True) -> None: ...

    replaced = sgd()
    replaced.zero_grad = lambda: None

    assert clears_plainly(sgd())
    assert not clears_plainly(sgd(Own))
    assert not clears_plainly(replaced)
    assert not clears_plainly(object())  # type: ignore[arg-type]
