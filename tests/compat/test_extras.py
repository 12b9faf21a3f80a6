"""What only programs written for Lightning need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulmen import LightningModule
from fulmen.compat import installed
from fulmen.compat.double_precision import LightningDoublePrecisionModule
from fulmen.compat.finite_loss import check_finite_loss


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.zeros(1)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["x"]).sum()  # type: ignore[no-any-return]

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch


@pytest.mark.parametrize("loss", [None, torch.tensor(1.0), torch.ones(2)])
def test_a_finite_loss_is_fine(loss):
    check_finite_loss(loss)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_loss_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="The loss returned in `training_step` is"):
        check_finite_loss(torch.tensor([1.0, value]))


def test_the_double_precision_wrapper_runs_everything_in_64_bit():
    with pytest.deprecated_call(match="64-true"):
        wrapper = LightningDoublePrecisionModule(Net()).double()
    batch = {"x": torch.ones(3, 2), "n": torch.ones(1, dtype=torch.int64)}

    assert wrapper.dtype == wrapper.module.dtype == torch.float64
    assert wrapper(batch["x"]).dtype == torch.float64
    assert wrapper.training_step(batch, 0).dtype == torch.float64
    assert {name: value.dtype for name, value in wrapper.predict_step(batch, 0).items()} == {
        "x": torch.float64,
        "n": torch.int64,
    }
    assert torch.get_default_dtype() == torch.float32


def test_flags_are_true_for_what_is_installed():
    flags = {name: getattr(installed, name) for name in installed.__all__}

    assert all(type(flag) is bool for flag in flags.values())
    assert flags["TORCH_GREATER_EQUAL_2_8"]  # the least that this package runs with
    assert flags["TORCH_GREATER_EQUAL_2_2"]
    assert not flags["TORCH_LESS_EQUAL_2_6"]
    assert flags["PYTHON_GREATER_EQUAL_3_10_0"]
