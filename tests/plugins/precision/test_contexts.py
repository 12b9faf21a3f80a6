"""Contexts that are entered at every step."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch

from fulmen.plugins.precision.contexts import DefaultDtype, ReusableAutocast, convert_floats


def test_default_dtype_is_put_back_after_an_exception():
    context = DefaultDtype(torch.float64)
    seen: list[Any] = []

    with suppress(ZeroDivisionError), context:
        seen.append(torch.ones(1).dtype)
        seen.append(1 / 0)

    assert seen == [torch.float64]
    assert torch.get_default_dtype() == torch.float32


def test_default_dtype_may_be_entered_inside_itself():
    context = DefaultDtype(torch.float64)

    with context:
        with context:
            pass
        assert torch.get_default_dtype() == torch.float64

    assert torch.get_default_dtype() == torch.float32


def test_autocast_may_be_entered_inside_itself_and_again():
    context = ReusableAutocast("cpu", torch.bfloat16, cache_enabled=False)

    for _ in range(2):
        with context:
            with context:
                assert torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_enabled("cpu")
            assert not torch.is_autocast_cache_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()


def test_autocast_is_switched_off_after_an_exception():
    context = ReusableAutocast("cpu", torch.bfloat16, cache_enabled=False)

    with pytest.raises(RuntimeError, match="inside"), context, context:
        raise RuntimeError("inside")

    assert not torch.is_autocast_enabled("cpu")


def test_autocast_computes_in_the_lower_precision():
    with ReusableAutocast("cpu", torch.bfloat16, cache_enabled=False):
        product = torch.ones(2, 2) @ torch.ones(2, 2)

    assert product.dtype == torch.bfloat16


def test_only_floats_are_converted():
    batch: dict[str, Any] = {
        "x": torch.ones(2),
        "half": torch.ones(2, dtype=torch.float16),
        "labels": [torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)],
        "phase": torch.ones(2, dtype=torch.complex64),
        "name": "a",
    }

    converted = convert_floats(batch, torch.float64)

    assert converted["x"].dtype == converted["half"].dtype == torch.float64
    assert [tensor.dtype for tensor in converted["labels"]] == [torch.int64, torch.bool]
    assert converted["phase"].dtype == torch.complex64
    assert converted["name"] == "a"
    assert batch["x"].dtype == torch.float32
