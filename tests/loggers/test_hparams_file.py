"""`hparams.yaml`, read back by a YAML parser."""

import math
from argparse import Namespace
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.loggers.hparams_file import hparams_text, write_hparams
from fulmen.utilities.warnings import PossibleUserWarning


class Color(Enum):
    RED = "r"


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abyn: {}é", max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcyn_ :#-é1", max_size=6), plain, max_size=4))
def test_plain_values_read_back_equal(hparams):
    text, inexact = hparams_text(hparams)

    assert inexact == []
    assert yaml.safe_load(text) == hparams


@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "off", "null", "~", "1e-5", "0x10", "2020-01-01", "é \x85\x7f\n😀"]
)
def test_words_with_a_meaning_in_yaml_stay_strings(word):
    text, _ = hparams_text({word: word})

    assert yaml.safe_load(text) == {word: word}


def test_small_floats_are_floats_for_yaml_parsers():
    text, _ = hparams_text({"lr": 1e-05, "big": 1e22, "nan": float("nan"), "low": float("-inf")})

    values = yaml.safe_load(text)
    assert values["lr"] == 1e-05
    assert values["big"] == 1e22
    assert math.isnan(values["nan"])
    assert values["low"] == float("-inf")


def test_there_is_one_line_for_each_key_in_order():
    text, _ = hparams_text({"b": {"x": [1, 2]}, "a": "text"})

    assert text == 'a: "text"\nb: {"x": [1, 2]}\n'


def test_values_with_a_plain_form_are_written_in_it():
    hparams = {
        "path": Path("data"),
        "dtype": torch.bfloat16,
        "color": Color.RED,
        "space": Namespace(a=(1, 2)),
        "tensor": torch.tensor([1, 2]),
        "scalar": np.float32(0.5),
        "keys": {1: "one"},
    }

    text, inexact = hparams_text(hparams)

    assert inexact == []
    assert yaml.safe_load(text) == {
        "path": "data",
        "dtype": "torch.bfloat16",
        "color": "RED",
        "space": {"a": [1, 2]},
        "tensor": [1, 2],
        "scalar": 0.5,
        "keys": {1: "one"},
    }


def test_objects_are_written_as_their_type_with_a_warning(tmp_path):
    path = str(tmp_path / "hparams.yaml")

    with pytest.warns(PossibleUserWarning, match=r"\['act', 'net'\].*ignore="):
        write_hparams(path, {"net": {"layers": [nn.Linear(1, 1)]}, "act": nn.ReLU, "lr": 0.1})

    assert yaml.safe_load(Path(path).read_text()) == {
        "net": {"layers": ["torch.nn.modules.linear.Linear"]},
        "act": "torch.nn.modules.activation.ReLU",
        "lr": 0.1,
    }


def test_large_arrays_are_not_spelled_out():
    text, inexact = hparams_text({"weights": torch.zeros(1000)})

    assert len(text) < 50
    assert inexact == ["weights"]


def test_no_hyperparameters_are_an_empty_mapping(tmp_path):
    write_hparams(str(tmp_path / "hparams.yaml"), {})

    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == {}


@pytest.mark.parametrize("kind", [np.float32, np.ndarray, torch.Tensor])
def test_class_of_arrays_is_written_by_its_name(kind):
    text, inexact = hparams_text({"dtype": kind})

    assert yaml.safe_load(text)["dtype"].endswith(kind.__name__)
    assert inexact == ["dtype"]
