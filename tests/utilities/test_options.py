from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.options import check_function, check_number, parse_device


@pytest.mark.parametrize(
    ("value", "bounds", "allowed"),
    [
        ("x", {}, "a number"),
        (True, {"whole": True}, "an int"),
        (1.0, {"whole": True, "least": 1}, "an int of at least 1"),
        (0, {"above": 0}, "a number above 0"),
        (2, {"least": 0, "most": 1}, "a number of at least 0 and of at most 1"),
        (1, {"below": 1}, "a number below 1"),
        (float("nan"), {}, "a number"),
        (float("inf"), {"above": 0}, "a number above 0"),
        (None, {}, "a number"),
        (-1, {"least": 0, "optional": True}, "a number of at least 0, or None"),
    ],
)
def test_what_is_out_of_range_is_refused_with_value_and_range(value: Any, bounds: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match="decay") as caught:
        check_number("Average", "decay", value, "the share that stays.", **bounds)

    assert str(caught.value) == f"`Average(decay={value!r})` must be {allowed}: the share that stays."


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(0, {"least": 0}), (1, {"most": 1}), (None, {"optional": True}), (numpy.float32(0.5), {}),
     (numpy.int64(3), {"whole": True})],
)  # fmt: skip
def test_what_is_in_range_is_accepted(value: Any, bounds: Any) -> None:
    check_number("", "decay", value, "", **bounds)


def test_what_cannot_be_called_is_refused() -> None:
    check_function("Average", "avg_fn", max, "")
    check_function("Average", "avg_fn", None, "", optional=True)
    with pytest.raises(TypeError, match=r"`Average\(avg_fn=3\)` must be a function: it averages\."):
        check_function("Average", "avg_fn", 3, "it averages.")


def test_a_device_is_known_by_its_name() -> None:
    assert parse_device("Average", "cpu") == torch.device("cpu")
    assert parse_device("Average", None) is None
    with pytest.raises(MisconfigurationException, match=r"`Average\(device='gpu\?'\)` is no device"):
        parse_device("Average", "gpu?")
