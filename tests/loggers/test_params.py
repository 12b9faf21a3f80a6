"""Hyperparameters as loggers need them."""

from argparse import Namespace
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import pytest
import torch
from torch import nn

from fulmen.loggers.params import convert_params, flatten_dict, merge_hparams, sanitize_params, to_scalar


@dataclass
class Schedule:
    warmup: int = 10
    steps: list[int] = field(default_factory=lambda: [1, 2])


class Color(Enum):
    RED = "r"


@pytest.mark.parametrize("params", [{"lr": 0.1}, Namespace(lr=0.1)])
def test_convert_params_gives_a_new_dict(params):
    converted = convert_params(params)

    assert converted == {"lr": 0.1}
    assert converted is not params


def test_convert_params_takes_dataclasses_and_none():
    assert convert_params(Schedule()) == {"warmup": 10, "steps": [1, 2]}
    assert convert_params(None) == {}


def test_convert_params_refuses_values_without_names():
    with pytest.raises(TypeError, match="no names to log them under"):
        convert_params([1, 2])  # type: ignore[arg-type]  # what the test is about


def test_flatten_dict_joins_the_keys_of_nested_settings():
    nested = {"opt": {"lr": 0.1, "sgd": Namespace(m=1)}, "schedule": Schedule(), "empty": {}, 3: "three"}

    assert flatten_dict(nested) == {
        "opt/lr": 0.1,
        "opt/sgd/m": 1,
        "schedule/warmup": 10,
        "schedule/steps": [1, 2],
        "empty": {},
        "3": "three",
    }


def test_flatten_dict_takes_another_delimiter():
    assert flatten_dict({"a": {"b": 1}}, delimiter=".") == {"a.b": 1}


def test_sanitize_params_leaves_only_plain_scalars():
    params = {
        "flag": True,
        "lr": 0.1,
        "none": None,
        "list": [1, 2],
        "scalar": torch.tensor(2.5),
        "array": np.float32(0.5),
        "cls": nn.ReLU,
        "color": Color.RED,
        "dtype": torch.float16,
    }

    assert sanitize_params(params) == {
        "flag": True,
        "lr": 0.1,
        "none": "None",
        "list": "[1, 2]",
        "scalar": 2.5,
        "array": 0.5,
        "cls": "torch.nn.modules.activation.ReLU",
        "color": "RED",
        "dtype": "torch.float16",
    }


@pytest.mark.parametrize("value", [torch.tensor(2.0), torch.tensor([2.0]), np.float64(2.0), np.array([2.0]), 2.0])
def test_to_scalar_takes_one_element_tensors_and_arrays(value):
    scalar = to_scalar(value)

    assert type(scalar) is float
    assert scalar == 2.0


def test_to_scalar_refuses_several_elements():
    with pytest.raises(ValueError, match=r"shape \(2,\).*one number per metric"):
        to_scalar(torch.ones(2))


def test_merge_hparams_joins_module_and_datamodule():
    merged = merge_hparams({"lr": 0.1, "seed": 1, "_class_path": "a.B"}, {"seed": 1, "batch": 8, "_class_path": "c.D"})

    assert merged == {"lr": 0.1, "seed": 1, "batch": 8}


def test_merge_hparams_takes_none_for_no_hyperparameters():
    assert merge_hparams(None, None) == {}
    assert merge_hparams(None, {"a": 1}) == {"a": 1}


def test_merge_hparams_refuses_same_name_with_different_value():
    with pytest.raises(RuntimeError, match=r"\['lr'\].*different values"):
        merge_hparams({"lr": 0.1, "x": 1}, {"lr": 0.2, "x": 1})


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(3),
        lambda: np.arange(3),
        lambda: float("nan"),
        lambda: {"weights": [torch.ones(2), np.ones(2)], "name": "a"},
    ],
)
def test_merge_hparams_compares_tensors_arrays_and_nan_by_value(make):
    merged = merge_hparams({"x": make()}, {"x": make()})

    assert list(merged) == ["x"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.arange(3), torch.arange(4)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (np.arange(3), np.arange(4)),
        ({"w": [np.ones(2)]}, {"w": [np.zeros(2)]}),
        ([1, 2], [1]),
        ("ab", ["a", "b"]),
    ],
)
def test_merge_hparams_sees_differences_inside_values(one, other):
    with pytest.raises(RuntimeError, match="different values"):
        merge_hparams({"x": one}, {"x": other})
