from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from fulmen.plugins.precision import FSDPPrecision


@pytest.mark.parametrize(
    ("precision", "gathered", "reduced"),
    [
        ("32-true", None, None),
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("16-mixed", torch.float16, torch.float32),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("16-true", torch.float16, torch.float16),
    ],
)
def test_each_precision_is_a_policy_of_torch(precision: Any, gathered: Any, reduced: Any) -> None:
    policy = FSDPPrecision(precision).mixed_precision_config

    assert (policy.param_dtype, policy.reduce_dtype) == (gathered, reduced)


@pytest.mark.parametrize("precision", ["64-true", "16", "fp8-mixed"])
def test_other_precisions_are_refused(precision: Any) -> None:
    with pytest.raises(ValueError, match=f"precision='{precision}'.*is not known"):
        FSDPPrecision(precision)


def test_a_scaler_is_used_where_gradients_are_scaled_and_refused_elsewhere() -> None:
    scaler = GradScaler("cpu", init_scale=4.0)

    assert FSDPPrecision("16-mixed", scaler=scaler).scaler is scaler
    assert isinstance(FSDPPrecision("16-mixed").scaler, GradScaler)
    with pytest.raises(ValueError, match="Remove the scaler"):
        FSDPPrecision("bf16-mixed", scaler=scaler)


def test_only_the_true_formats_convert_weights_and_inputs() -> None:
    batch = {"x": torch.ones(2), "y": torch.ones(2, dtype=torch.long)}
    for precision, expected in (("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)):
        plugin = FSDPPrecision(precision)  # type: ignore[arg-type]  # one of the names

        converted = plugin.convert_input(batch)

        assert plugin.convert_module(nn.Linear(2, 2)).weight.dtype is expected
        assert (converted["x"].dtype, converted["y"].dtype) == (expected, torch.long)


def test_the_mixed_formats_compute_by_autocast() -> None:
    with FSDPPrecision("bf16-mixed").forward_context():
        output = nn.Linear(2, 2)(torch.ones(1, 2))

    assert output.dtype is torch.bfloat16


def test_32_bit_leaves_the_steps_of_a_loop_out() -> None:
    assert FSDPPrecision("32-true").is_plain
    assert not FSDPPrecision("bf16-true").is_plain
