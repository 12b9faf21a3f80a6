"""Which settings load without running code."""

from __future__ import annotations

import io
import pickle
from argparse import Namespace
from collections import Counter, OrderedDict, namedtuple
from enum import Enum, IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch

from fulmen.utilities.plain_data import NotPlainError, explain_refusal, split_settings, to_plain


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


Pair = namedtuple("Pair", "a b")

UNCHANGED = [None, True, 1, 2**70, 0.5, 1j, "s", b"b", [1, (2, {3})], {"a": {1: 2}}, OrderedDict(a=1), torch.float16]
CHANGED = [
    (Path("a/b"), "a/b"),
    (Color.RED, "red"),
    (Level.HIGH, 3),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (Counter("aa"), {"a": 2}),
    (Namespace(x=[Path("y")]), {"x": ["y"]}),
]
REFUSED = [torch.nn.ReLU(), torch.nn.ReLU, torch.relu, print, lambda: 1, np.arange(3), Pair(1, 2), range(3), [print]]


@pytest.mark.parametrize("value", UNCHANGED, ids=repr)
def test_plain_values_stay_and_load_with_weights_only(value):
    plain = to_plain(value)

    assert plain == value
    assert type(plain) is type(value)
    assert reloaded(plain) == value


@pytest.mark.parametrize(("value", "expected"), CHANGED, ids=repr)
def test_special_values_become_what_they_stand_for(value, expected):
    plain = to_plain(value)

    assert plain == expected
    assert type(plain) is type(expected)
    assert reloaded(plain) == expected


def test_tensors_stay():
    value = to_plain({"t": torch.arange(3), "p": torch.nn.Parameter(torch.ones(1))})

    assert reloaded(value)["t"].equal(torch.arange(3))
    assert type(reloaded(value)["p"]) is torch.nn.Parameter


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_objects_that_need_code_to_load_have_no_plain_form(value):
    with pytest.raises(NotPlainError, match="weights_only=True"):
        to_plain(value)


def test_allowed_classes_of_this_process_do_not_count():
    with torch.serialization.safe_globals([Pair]), pytest.raises(NotPlainError):
        to_plain(Pair(1, 2))


def test_settings_are_split_by_how_they_can_be_stored():
    parts = split_settings({"lr": 0.1, "path": Path("a"), "act": torch.relu, "f": lambda: 1})

    assert parts.plain == {"lr": 0.1, "path": "a"}
    assert parts.left_out == ["act", "f"]
    assert parts.lost == ["f"]
    exact = {name: torch.load(io.BytesIO(data), weights_only=False) for name, data in parts.pickled.items()}
    assert exact == {"path": Path("a"), "act": torch.relu}


def test_a_changed_type_deep_inside_is_pickled_too():
    parts = split_settings({"a": [{"b": (Path("x"),)}], "c": [{"b": ("x",)}]})

    assert parts.plain == {"a": [{"b": ("x",)}], "c": [{"b": ("x",)}]}
    assert list(parts.pickled) == ["a"]


def test_a_refusal_names_the_object_and_the_way_out():
    buffer = io.BytesIO()
    torch.save(Path("x"), buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(buffer, weights_only=True)
    explained = explain_refusal(caught.value, "my.ckpt")

    assert type(explained) is pickle.UnpicklingError
    assert "`my.ckpt` holds an object of type `pathlib" in str(explained)
    assert "`weights_only=False`" in str(explained)


def reloaded(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
