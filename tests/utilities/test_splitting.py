from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.splitting import even_sizes, num_samples, split_batch

X = torch.arange(10.0).view(5, 2)


class Pair(NamedTuple):
    x: Tensor
    name: str


@dataclasses.dataclass
class Record:
    x: Tensor
    ids: list[int]


def same(one: Any, other: Any) -> bool:
    return str(one) == str(other)


@pytest.mark.parametrize(
    ("batch", "first", "second"),
    [
        (X, X[:3], X[3:]),
        ([X, X[:, 0]], [X[:3], X[:3, 0]], [X[3:], X[3:, 0]]),
        ({"x": X, "n": 2.0, "mode": "a"}, {"x": X[:3], "n": 2.0, "mode": "a"}, {"x": X[3:], "n": 2.0, "mode": "a"}),
        ({"x": X, "ids": [1, 2, 3, 4, 5]}, {"x": X[:3], "ids": [1, 2, 3]}, {"x": X[3:], "ids": [4, 5]}),
        ((X, torch.tensor(3.0)), (X[:3], torch.tensor(3.0)), (X[3:], torch.tensor(3.0))),
        (Pair(X, "a"), Pair(X[:3], "a"), Pair(X[3:], "a")),
        (Record(X, [1, 2, 3, 4, 5]), Record(X[:3], [1, 2, 3]), Record(X[3:], [4, 5])),
        (X.numpy(), X.numpy()[:3], X.numpy()[3:]),
        (list("abcde"), list("abc"), list("de")),
        (
            ([X[:1], X[:2], X, X[:1], X[:4]], [{"a": X[:2]}] * 5),
            ([X[:1], X[:2], X], [{"a": X[:2]}] * 3),
            ([X[:1], X[:4]], [{"a": X[:2]}] * 2),
        ),
        (
            {"images": [X[:1], X[:2], X, X[:1], X[:4]], "labels": [1, 2, 3, 4, 5]},
            {"images": [X[:1], X[:2], X], "labels": [1, 2, 3]},
            {"images": [X[:1], X[:4]], "labels": [4, 5]},
        ),
    ],
    ids=range(11),
)  # fmt: skip
def test_samples_are_divided_and_what_belongs_to_all_is_in_each_part(batch: Any, first: Any, second: Any) -> None:
    assert num_samples(batch) == 5
    parts = split_batch(batch, [3, 2])

    assert same(parts[0], first)
    assert same(parts[1], second)
    assert type(parts[0]) is type(batch)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ([X, X[:3]], r"\[3, 5\]"),
        ({"n": 5}, "no tensor"),
        ({"x": X, "names": ["a", "b"]}, r"\[2, 5\]"),
        ([X, object()], "`object`"),
        (pack_sequence([X, X[:2]]), "`PackedSequence`"),
        (([X, X], [X, X]), "two ways: 2 samples in lists, or 5"),
    ],
    ids=["lengths", "nothing", "list", "object", "packed", "ambiguous"],
)
def test_a_batch_whose_samples_are_not_clear_is_refused(batch: Any, text: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"{text}.*accumulate_grad_batches=<int>"):
        num_samples(batch)


def test_parts_are_as_few_and_as_even_as_can_be() -> None:
    assert even_sizes(9, 4) == [3, 3, 3]
    assert even_sizes(8, 4) == [4, 4]
    assert even_sizes(7, 3) == [3, 2, 2]
    assert even_sizes(2, 8) == [2]
