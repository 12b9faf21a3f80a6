"""`CombinedLoader` against a simple model of what each mode means."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.data.combined_loader import CombinedLoader

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
DataLoader: Any = torch.utils.data.DataLoader

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Loaders:
    a: Any
    b: Any
    name: str = "kept"


class Unsized:
    """Iterable without length; counts how many items were taken."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length, self.taken = name, length, 0

    def __iter__(self):
        for i in range(self.length):
            self.taken += 1
            yield f"{self.name}{i}"


class Sized(Unsized):
    def __len__(self) -> int:
        return self.length


def reference(loaders: list[Any], mode: str, limits: list[Any]) -> list[tuple[Any, int, int]]:
    """The items of each mode, with the batch as a list."""
    columns = [
        list(loader) if limit == math.inf else list(loader)[:limit]
        for loader, limit in zip(loaders, limits, strict=True)
    ]
    if mode == "sequential":
        return [(batch, i, k) for k, column in enumerate(columns) for i, batch in enumerate(column)]
    if mode == "min_size":
        rows = [list(row) for row in zip(*columns, strict=False)]
    elif mode == "max_size":
        rows = [list(row) for row in zip_longest(*columns)]
    else:
        longest = max(map(len, columns))
        total = longest if all(columns) else 0
        rows = [[column[i % len(column)] for column in columns] for i in range(total)]
    return [(row, i, 0) for i, row in enumerate(rows)]


def values_of(nested: Any) -> list[Any]:
    if isinstance(nested, Loaders):
        return [*values_of(nested.a), *values_of(nested.b)]
    if isinstance(nested, dict):
        return [leaf for part in nested.values() for leaf in values_of(part)]
    if isinstance(nested, (list, tuple)):
        return [leaf for part in nested for leaf in values_of(part)]
    return [nested]


def shape_of(nested: Any) -> Any:
    if isinstance(nested, Loaders):
        return (Loaders, nested.name, shape_of(nested.a), shape_of(nested.b))
    if isinstance(nested, dict):
        return (type(nested), [(key, shape_of(part)) for key, part in nested.items()])
    if isinstance(nested, (list, tuple)):
        return (type(nested), [shape_of(part) for part in nested])
    return "leaf"


MODES = ["min_size", "max_size", "max_size_cycle", "sequential"]

leaves = st.builds(
    lambda cls, name, n: cls(name, n), st.sampled_from([Sized, Unsized]), st.sampled_from("abcd"), st.integers(0, 5)
)
collections = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3),
        st.lists(inner, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("xyz"), inner, min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("xyz"), inner, min_size=1, max_size=3).map(OrderedDict),
        st.builds(Pair, inner, inner),
        st.builds(Loaders, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(collections, st.sampled_from(MODES), st.data())
def test_every_mode_and_nesting_is_as_in_the_reference_model(collection, mode, data):
    combined = CombinedLoader(collection, mode)
    loaders = combined.flattened
    limit = st.one_of(st.integers(0, 6), st.just(math.inf))
    limits = data.draw(st.one_of(st.none(), limit, st.lists(limit, min_size=len(loaders), max_size=len(loaders))))
    combined.limits = limits
    as_list = combined.limits or [math.inf] * len(loaders)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty loader cannot be cycled
        items = list(combined)

    flat = [(values_of(batch) if mode != "sequential" else batch, i, k) for batch, i, k in items]
    assert flat == reference(loaders, mode, as_list)
    if mode != "sequential":
        assert all(shape_of(batch) == shape_of(collection) for batch, _, _ in items)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=4), st.sampled_from(MODES))
def test_total_batches_is_the_number_of_items(sizes, mode):
    combined = CombinedLoader([Sized("s", n) for n, _ in sizes], mode)
    combined.limits = [limit if limit else math.inf for _, limit in sizes]

    assert combined.total_batches() == len(list(combined)) == len(combined)


@pytest.mark.parametrize("mode", MODES)
def test_limits_ask_for_no_batch_too_many(mode):
    loaders = [Sized("a", 5), Unsized("b", 5)]
    combined = CombinedLoader(loaders, mode)
    combined.limits = [2, 2]

    list(combined)

    assert [loader.taken for loader in loaders] == [2, 2]


@pytest.mark.parametrize(
    ("iterables", "flattened"),
    [
        ([1, 2, "a"], [[1, 2, "a"]]),
        ([], [[]]),
        ({}, [{}]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([[1, 2], 3], [[1, 2], 3]),
        ({"a": [1, 2]}, [[1, 2]]),
        ({"a": 1}, [{"a": 1}]),
        ([True], [[True]]),
        ("abc", ["abc"]),
        (range(3), [range(3)]),
        (((1, 2), [range(3)]), [(1, 2), range(3)]),
    ],
)
def test_containers_of_plain_values_are_loaders(iterables, flattened):
    assert CombinedLoader(iterables).flattened == flattened


def test_a_defaultdict_stays_one():
    loaders: Any = defaultdict(list)
    loaders.update(a=range(1), b=range(2))

    (batch, _, _) = next(iter(CombinedLoader(loaders)))

    assert batch == {"a": 0, "b": 0}
    assert batch["c"] == []


def test_a_dataclass_that_can_be_iterated_is_one_loader():
    @dataclass
    class Stream:
        n: int

        def __iter__(self):
            return iter(range(self.n))

    assert list(CombinedLoader(Stream(2))) == [(0, 0, 0), (1, 1, 0)]


def test_a_dataclass_batch_leaves_the_loaders_alone():
    loaders = Loaders(range(2), range(3))

    batches = [batch for batch, _, _ in CombinedLoader(loaders, "max_size")]

    assert batches == [Loaders(0, 0), Loaders(1, 1), Loaders(None, 2)]
    assert loaders == Loaders(range(2), range(3))


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode='longest'"):
        CombinedLoader([range(2)], "longest")


def test_length_needs_iter_first():
    combined = CombinedLoader([range(2)])
    with pytest.raises(RuntimeError, match="call `iter"):
        len(combined)
    iter(combined)
    assert len(combined) == 2
    combined.reset()
    with pytest.raises(RuntimeError, match="call `iter"):
        len(combined)


def test_an_unknown_length_is_infinite():
    combined = CombinedLoader([range(2), Unsized("a", 3)], "max_size")
    iter(combined)

    assert combined.total_batches() == math.inf
    assert combined.__len__() == math.inf
    with pytest.raises(TypeError):
        len(combined)


def test_next_goes_on_with_the_last_iterator():
    combined = CombinedLoader([range(2), range(3)])
    with pytest.raises(RuntimeError, match="call `iter"):
        next(combined)
    iter(combined)
    assert next(combined) == ([0, 0], 0, 0)
    assert next(combined) == ([1, 1], 1, 0)


def test_limits_may_be_one_number_a_list_or_none():
    combined = CombinedLoader([range(2), range(3)])
    assert combined.limits is None
    combined.limits = 3
    assert combined.limits == [3, 3]
    combined.limits = [1, 2]
    assert combined.limits == [1, 2]
    with pytest.raises(ValueError, match=r"number of limits \(1\)"):
        combined.limits = [1]
    assert combined.limits == [1, 2]


def test_flattened_can_be_replaced_by_as_many():
    combined = CombinedLoader({"a": range(2), "b": [range(3)]})
    combined.flattened = [range(4), range(5)]
    assert combined.iterables == {"a": range(4), "b": [range(5)]}
    with pytest.raises(ValueError, match=r"flattened length \(1\)"):
        combined.flattened = [range(1)]


def test_samplers_come_in_the_structure_of_the_loaders():
    loader = DataLoader(range(3))
    combined = CombinedLoader({"a": loader, "b": [1]})

    assert combined.sampler == {"a": loader.sampler, "b": None}
    assert combined.batch_sampler == {"a": loader.batch_sampler, "b": None}
    assert CombinedLoader(loader).sampler is loader.sampler


def test_cycling_an_iterator_that_is_used_up_ends_with_a_warning():
    combined = CombinedLoader([iter(range(2)), range(5)], "max_size_cycle")

    with pytest.warns(UserWarning, match="only once"):
        items = list(combined)

    assert items == [([0, 0], 0, 0), ([1, 1], 1, 0)]


def test_loaders_can_be_iterated_again_and_at_the_same_time():
    combined = CombinedLoader([range(2), range(3)], "max_size_cycle")
    first, second = iter(combined), iter(combined)

    assert list(zip(first, second, strict=True)) == [(item, item) for item in combined]


def test_a_cycled_dataloader_shuffles_anew():
    torch.manual_seed(1)
    short = DataLoader(range(8), batch_size=None, shuffle=True)

    drawn = [batch[0] for batch, _, _ in CombinedLoader([short, range(16)], "max_size_cycle")]

    assert sorted(drawn[:8]) == sorted(drawn[8:]) == list(range(8))
    assert drawn[:8] != drawn[8:]


def test_reset_shuts_workers_down():
    persistent = DataLoader(range(8), num_workers=1, persistent_workers=True)
    passing = DataLoader(range(8), num_workers=1)
    combined = CombinedLoader([persistent, passing])
    iterator = iter(combined)
    next(iterator)
    workers = list(persistent._iterator._workers)
    assert all(worker.is_alive() for worker in workers)

    combined.reset()

    assert not any(worker.is_alive() for worker in workers)
    assert persistent._iterator is None
    assert list(islice(iterator, 1)) == []
    assert len(list(combined)) == 8
    combined.reset()
