"""Batches and other nested collections."""

from __future__ import annotations

import dataclasses
import timeit
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fulmen.utilities import tree
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import WarningCache
from fulmen.utilities.tree import (
    apply_to_collection,
    apply_to_collections,
    convert_tensors_to_scalars,
    convert_to_tensors,
    extract_batch_size,
    move_data_to_device,
)

CPU, META = torch.device("cpu"), torch.device("meta")

Point = namedtuple("Point", ["x", "y"])


class Typed(NamedTuple):
    """A named tuple of the other kind."""

    x: int
    y: Any


@dataclasses.dataclass
class Sample:
    """A batch as a dataclass."""

    image: Any
    label: Any = None
    size: Any = dataclasses.field(init=False, default=3)


@dataclasses.dataclass
class Pair:
    """A dataclass with plain fields."""

    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A batch that cannot be changed."""

    image: Any


@dataclasses.dataclass
class Slotted:
    """A batch without `__dict__`."""

    __slots__ = ("image",)
    image: Any


class Words(list[Any]):
    """A list of its own type."""


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Collections of all supported types, nested."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.lists(inner, max_size=3).map(Words),
            st.dictionaries(st.text(max_size=2), inner, max_size=3),
            st.dictionaries(st.text(max_size=2), inner, max_size=3).map(OrderedDict),
            st.dictionaries(st.text(max_size=2), inner, max_size=3).map(lambda items: defaultdict(list, items)),
            st.tuples(inner, inner).map(lambda pair: Point(*pair)),
            st.tuples(inner, inner).map(lambda pair: Sample(*pair)),
            inner.map(Frozen),
        ),
        max_leaves=8,
    )


LEAVES = st.one_of(st.integers(), st.text(max_size=3), st.none(), st.binary(max_size=2), st.booleans(), st.floats(0, 1))


@settings(deadline=None)  # machines differ
@given(data=nested(LEAVES))
def test_the_identity_gives_an_equal_collection_of_the_same_types(data):
    result = apply_to_collection(data, (int, float), lambda value: value)

    assert result == data
    assert type(result) is type(data)
    assert repr(result) == repr(data)


@settings(deadline=None)  # machines differ
@given(data=nested(LEAVES))
def test_a_function_and_its_inverse_give_the_collection_back(data):
    there = apply_to_collection(data, int, lambda value: value + 1, wrong_dtype=bool)
    back = apply_to_collection(there, int, lambda value: value - 1, wrong_dtype=bool)

    assert repr(back) == repr(data)


@settings(deadline=None)  # machines differ
@given(data=nested(LEAVES))
def test_two_collections_of_the_same_structure_are_walked_together(data):
    doubled = apply_to_collections(data, data, int, lambda one, two: one + two, wrong_dtype=bool)

    assert repr(doubled) == repr(apply_to_collection(data, int, lambda value: 2 * value, wrong_dtype=bool))


@settings(deadline=None)  # machines differ
@given(data=nested(st.integers()))
def test_the_collection_itself_is_not_modified(data):
    before = repr(data)
    apply_to_collection(data, int, lambda value: value + 1)

    assert repr(data) == before


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": 1, "b": [2, "x"]}, {"a": 2, "b": [4, "x"]}),
        (Point(1, Typed(2, "x")), Point(2, Typed(4, "x"))),
        (Pair(1, [2]), Pair(2, [4])),
        (Frozen(1), Frozen(2)),
        (Slotted(1), Slotted(2)),
        (Words([1, 2]), Words([2, 4])),
        (deque([1, 2]), deque([2, 4])),
        (UserDict({"a": 1}), UserDict({"a": 2})),
        (torch.Size([1, 2]), torch.Size([2, 4])),
        ("12", "12"),
        (b"12", b"12"),
        (range(3), range(3)),
        (Sample, Sample),
        (None, None),
    ],
)
def test_collections_keep_their_type(data, expected):
    result = apply_to_collection(data, int, lambda value: 2 * value)

    assert result == expected or (isinstance(data, Slotted) and result.image == expected.image)
    assert type(result) is type(expected)


def test_fields_of_a_dataclass_that_init_does_not_take_are_converted_too():
    assert apply_to_collection(Sample(1), int, lambda value: 2 * value).size == 6


def test_a_field_that_was_never_set_is_passed_over():
    sample = Sample(1)
    del sample.label
    object.__delattr__(sample, "image")

    assert apply_to_collection(sample, int, lambda value: 2 * value).size == 6


def test_a_default_dictionary_keeps_its_default():
    result = apply_to_collection(defaultdict(list, a=1), int, str)

    assert result == {"a": "1"}
    assert result["new"] == []


def test_results_of_none_are_left_out_on_request():
    data = {"a": 1, "b": [2, "x", 3], "c": Sample(4)}

    def odd(value):
        return value if value % 2 else None

    assert apply_to_collection(data, int, odd, include_none=False) == {"a": 1, "b": ["x", 3], "c": Sample(4)}
    assert apply_to_collection([1, 2], int, odd) == [1, None]
    assert apply_to_collection(Point(1, 2), int, odd, include_none=False) == Point(1, None)


def test_wrong_types_are_left_alone_and_arguments_are_passed_on():
    assert apply_to_collection([1, True], int, pow, 2, wrong_dtype=bool) == [1, True]
    assert apply_to_collection(["7", 3], str, int, base=8) == [7, 3]


def test_an_object_that_matches_is_not_entered():
    assert apply_to_collection({"a": [1, 2]}, list, len) == {"a": 2}


def test_two_collections_of_which_one_is_missing():
    assert apply_to_collections([1, 2], None, int, lambda value: -value) == [-1, -2]
    assert apply_to_collections(None, [1, 2], int, lambda value: -value) == [-1, -2]
    assert apply_to_collections(None, None, int, lambda value: -value) is None


@pytest.mark.parametrize(
    ("one", "two"),
    [([1], [1, 2]), ({"a": 1}, {"b": 1}), ([1], 1), (Sample(1), Frozen(1)), ({"a": [1]}, {"a": [1, 2]})],
)
def test_two_collections_that_differ_in_structure_are_refused(one, two):
    with pytest.raises(ValueError, match="differ in structure"):
        apply_to_collections(one, two, int, lambda first, second: first)


# ---- move


class Movable:
    """Something with a `to`, as libraries have it."""

    def __init__(self):
        self.device = None

    def to(self, device):
        self.device = device
        return self


class InPlace(Movable):
    """Something whose `to` returns nothing."""

    def to(self, device):
        self.device = device


@pytest.mark.parametrize("device", ["meta", META])
def test_all_tensors_of_a_batch_are_moved(device):
    batch: Any = [torch.ones(2), {"x": torch.ones(2), "n": 3}, (torch.ones(1), "text"), Sample(torch.ones(2))]

    moved = move_data_to_device(batch, device)

    assert moved[0].device == moved[1]["x"].device == moved[2][0].device == moved[3].image.device == META
    assert (moved[1]["n"], moved[2][1]) == (3, "text")
    assert batch[0].device == CPU


def test_a_tensor_that_is_there_already_is_not_copied_but_its_container_is_new():
    tensor = torch.ones(2)
    batch = [tensor]

    moved = move_data_to_device(batch, CPU)

    assert moved[0] is tensor
    assert moved is not batch


def test_objects_with_a_method_to_are_moved():
    objects: dict[str, Any] = {"a": Movable(), "b": InPlace()}

    moved = move_data_to_device(objects, META)

    assert moved == objects
    assert (moved["a"].device, moved["b"].device) == (META, META)


def test_a_packed_sequence_is_moved_as_a_whole():
    moved = move_data_to_device(pack_sequence([torch.ones(2), torch.ones(1)]), CPU)

    assert isinstance(moved, PackedSequence)


def test_a_subclass_of_tensor_and_a_parameter_are_moved_by_their_own_method():
    parameter = torch.nn.Parameter(torch.ones(1))

    assert move_data_to_device([parameter], META)[0].device == META


def test_classes_with_a_method_to_are_left_alone():
    assert move_data_to_device([torch.Tensor], META) == [torch.Tensor]


# ---- size


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(4, 2), 4),
        (torch.tensor(1.0), 1),
        ([torch.ones(3, 2), torch.ones(3)], 3),
        ({"text": "abc", "x": [torch.ones(5)]}, 5),
        (("name", 7, {"y": torch.ones(2)}), 2),
        (Sample("image", torch.ones(6)), 6),
        ([np.ones(9), torch.ones(2)], 2),
        ({torch.ones(2)}, 2),
        (torch.nn.Parameter(torch.ones(3)), 3),
        ([b"bytes", range(3), torch.ones(2)], 2),
    ],
)
def test_the_batch_size_is_that_of_the_first_tensor(batch, size):
    assert extract_batch_size(batch) == size


@pytest.mark.parametrize("batch", [None, 3, "text", [], {"a": ["b"]}, np.ones(3), Sample("x")])
def test_a_batch_without_tensors_has_no_size(batch):
    with pytest.raises(MisconfigurationException, match=r"batch_size=\.\.\."):
        extract_batch_size(batch)


def test_tensors_of_different_lengths_warn_once_and_the_first_counts(monkeypatch):
    monkeypatch.setattr(tree, "_warnings", WarningCache())
    batch = [torch.ones(3), torch.ones(4), torch.ones(5)]

    with pytest.warns(UserWarning, match="the first, 3, is taken") as record:
        assert extract_batch_size(batch) == 3

    assert len(record) == 1
    assert record[0].filename == __file__
    assert extract_batch_size(batch) == 3


def test_an_iterator_in_a_batch_is_not_used_up():
    iterator = iter([torch.ones(2)])

    with pytest.raises(MisconfigurationException):
        extract_batch_size([iterator])
    assert len(list(iterator)) == 1


# ---- convert


def test_tensors_of_one_element_become_numbers():
    data = {"a": torch.tensor(1.5), "b": [torch.tensor([2]), "x"], "c": torch.tensor(True)}

    result = convert_tensors_to_scalars(data)

    assert result == {"a": 1.5, "b": [2, "x"], "c": True}
    assert [type(result["a"]), type(result["b"][0]), type(result["c"])] == [float, int, bool]


def test_a_tensor_of_several_elements_does_not_become_a_number():
    with pytest.raises(ValueError, match="does not contain a single element"):
        convert_tensors_to_scalars([torch.ones(2)])


def test_numbers_and_arrays_become_tensors():
    result = convert_to_tensors({"a": 1, "b": True, "c": np.ones(2), "d": 2.5, "e": "s"}, CPU)

    assert result["e"] == "s"
    assert [result[key].dtype for key in "abcd"] == [torch.int32, torch.uint8, torch.float64, torch.float32]
    assert result["d"].item() == 2.5


# ---- cost


@pytest.mark.parametrize("function", [extract_batch_size, lambda batch: move_data_to_device(batch, CPU)])
@pytest.mark.parametrize("batch", [torch.ones(4, 2), (torch.ones(4, 2), torch.ones(4))])
def test_a_usual_batch_costs_little(function, batch):
    small = torch.ones(8, 8)  # its product takes about 2 microseconds

    def fastest(call):
        return min(timeit.repeat(call, number=200, repeat=20))

    assert fastest(lambda: function(batch)) < 3 * fastest(lambda: small @ small)
