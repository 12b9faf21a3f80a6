"""Methods of a module called through what wraps it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from fulmen.strategies.route import Redirection, call, unwrapped


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Any) -> Any:
        return x * self.scale

    def encode(self, x: Any) -> Any:
        return self(x) + 100


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x: Any) -> Any:
        return ("forward", x)

    def training_step(self, x: Any, *, flag: bool = False) -> Any:
        return ("step", self(x), flag)

    def broken(self, x: Any) -> Any:
        raise ArithmeticError(x)


class Wrapper(nn.Module):
    """Works around forward, as wrappers of torch do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if args == ("refused",):
            raise ValueError("refused")
        return ("wrapped", self.module(*args, **kwargs))


@pytest.fixture
def inner():
    return Inner()


@pytest.fixture
def wrapper(inner):
    return Wrapper(inner)


def test_a_method_runs_inside_the_wrapper_and_forward_is_itself_there(inner, wrapper):
    assert call(wrapper, inner, "training_step", 1, flag=True) == ("wrapped", ("step", ("forward", 1), True))
    assert call(wrapper, inner, "forward", 2) == ("wrapped", ("forward", 2))
    assert wrapper.calls == 2
    assert "forward" not in vars(inner)


def test_a_method_can_go_through_the_wrapper_again(inner, wrapper):
    inner.outer = lambda x: ("outer", call(wrapper, inner, "training_step", x), inner(x))

    expected = ("wrapped", ("outer", ("wrapped", ("step", ("forward", 1), False)), ("forward", 1)))
    assert call(wrapper, inner, "outer", 1) == expected


def test_methods_of_submodules_and_functions_are_routed(inner, wrapper):
    name, value = call(wrapper, inner, "encoder.encode", 2)
    assert (name, value.item()) == ("wrapped", 106)
    assert call(wrapper, inner, lambda x: inner(x), 4) == ("wrapped", ("forward", 4))


def test_forward_is_restored_whoever_fails(inner, wrapper):
    with pytest.raises(ArithmeticError):
        call(wrapper, inner, "broken", 1)
    assert "forward" not in vars(inner)
    with pytest.raises(ValueError, match="refused"):
        call(wrapper, inner, "training_step", "refused")
    assert inner(1) == ("forward", 1)


def test_a_forward_that_the_user_replaced_comes_back(inner, wrapper):
    def mine(x):
        return ("mine", x)

    inner.forward = mine

    assert call(wrapper, inner, "training_step", 1) == ("wrapped", ("step", ("mine", 1), False))
    assert vars(inner)["forward"] is mine


def test_without_a_wrapper_the_method_is_called(inner):
    assert call(inner, inner, "training_step", 1) == ("step", ("forward", 1), False)


def test_a_redirection_is_cheap(inner):
    method, rounds = inner.training_step, 500

    def through():
        with Redirection(inner, method):
            inner.forward(1)

    def directly():
        inner.training_step(1)

    def fastest(function):
        best = float("inf")
        for _ in range(20):
            start = time.thread_time()  # not what others do meanwhile
            for _ in range(rounds):
                function()
            best = min(best, time.thread_time() - start)
        return best / rounds

    assert fastest(through) - fastest(directly) < 5e-6


def test_wrappers_of_torch_are_taken_off(inner):
    assert unwrapped(inner) is inner
    assert unwrapped(nn.DataParallel(inner)) is inner
    assert unwrapped(torch.compile(nn.DataParallel(inner), backend="eager")) is inner  # type: ignore[arg-type]


def test_copies_of_a_module_run_their_own_method():
    class Copies(nn.DataParallel[nn.Module]):
        """Two copies, as on two GPUs."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            replica = self.module._replicate_for_data_parallel()
            replica._parameters["scale"] = torch.tensor(5.0)
            return replica(*args, **kwargs), self.module(*args, **kwargs)

    encoder = Encoder()
    wrapper = Copies(encoder)
    first, second = call(wrapper, encoder, "encode", 2)

    assert (first.item(), second.item()) == (110, 106)
    assert type(encoder) is Encoder
    with pytest.raises(TypeError, match="runs copies of the module"):
        call(wrapper, encoder, encoder.encode, 2)
