"""Number formats on XLA devices, with a stand-in for the package."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from fulmen.plugins.precision import XLAPrecision


@pytest.fixture
def steps(monkeypatch):
    """Record what reaches `torch_xla.core.xla_model.optimizer_step`."""
    calls: list[Any] = []

    def optimizer_step(optimizer, barrier=False, optimizer_args=None):
        calls.append(optimizer_args)
        optimizer.step(**(optimizer_args or {}))

    module = ModuleType("torch_xla.core.xla_model")
    module.optimizer_step = optimizer_step  # type: ignore[attr-defined]  # the stand-in
    for name in ("torch_xla", "torch_xla.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_a_step_computes_gradients_first_and_goes_through_the_package(steps):
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def closure():
        loss = model(torch.ones(1, 1)).sum()
        loss.backward()
        return 3

    result = XLAPrecision().optimizer_step(optimizer, model, closure)

    assert (result, steps) == (3, [{}])
    assert model.weight.item() == pytest.approx(before - 1.0)


@pytest.mark.parametrize(
    ("name", "dtype"), [("32-true", torch.float32), ("16-true", torch.float16), ("bf16-true", torch.bfloat16)]
)
def test_everything_has_the_type(steps, name, dtype):
    precision = XLAPrecision(name)
    model = precision.convert_module(nn.Linear(1, 1))
    context = precision.train_step_context()

    with context, context:
        made = torch.ones(1)
    with precision.module_init_context():
        layer = nn.Linear(1, 1)

    assert {model.weight.dtype, made.dtype, layer.weight.dtype, precision.convert_input(torch.ones(1)).dtype} == {dtype}
    assert precision.convert_output(made).dtype == torch.float32
    assert not precision.is_plain
    assert precision.precision == name


def test_other_names_are_refused(steps):
    wrong: Any = "16-mixed"
    with pytest.raises(ValueError, match=r"precision='16-mixed'.*'32-true', '16-true', 'bf16-true'"):
        XLAPrecision(wrong)


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_xla", None)

    with pytest.raises(ModuleNotFoundError, match=r"XLAPrecision.*pip install 'fulmen\[xla\]'"):
        XLAPrecision()
