"""What the loops rely on: limits, the last batch, ends, workers, costs."""

from __future__ import annotations

import math
import timeit
from itertools import count
from typing import Any

import pytest
import torch

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.prefetch import EvalBatches, TrainBatches

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
DataLoader: Any = torch.utils.data.DataLoader
DistributedSampler: Any = torch.utils.data.DistributedSampler
IterableDataset: Any = torch.utils.data.IterableDataset


class Recording:
    """A loader that counts what was asked of it."""

    def __init__(self, length: int, announced: int | None = None) -> None:
        self.length, self.asked, self.passes = length, 0, 0
        self.announced = length if announced is None else announced

    def __iter__(self):
        self.passes += 1
        for i in range(self.length):
            self.asked += 1
            yield i


class Sized(Recording):
    def __len__(self) -> int:
        return self.announced


def train(loader, mode="max_size_cycle", **kwargs) -> TrainBatches:
    return TrainBatches(CombinedLoader(loader, mode), **kwargs)


@pytest.mark.parametrize("limit", [0, 1, 3, 5, 9, math.inf])
@pytest.mark.parametrize("kind", [Sized, Recording])
def test_batches_up_to_the_limit_and_the_last_is_known(kind, limit):
    loader = kind(5)
    batches = train(loader, limit=limit)
    num = min(limit, 5)

    assert list(batches) == [(i, i, i == num - 1) for i in range(num)]
    assert not batches.ended_early
    assert loader.asked == num


def test_num_batches_and_sizes():
    assert train(Sized(5), limit=3).num_batches == 3
    assert train(Sized(5)).num_batches == 5
    assert train(Recording(5)).num_batches == math.inf
    assert train(Recording(5), limit=3).num_batches == 3
    assert train(Sized(5)).is_sized
    assert not train([Sized(5), Recording(5)]).is_sized
    assert train([Sized(5), Recording(5)], "min_size").num_batches == 5


def test_a_sized_loader_is_not_read_ahead():
    loader = Sized(5)
    for _, batch_idx, _ in train(loader):
        assert loader.asked == batch_idx + 1


def test_a_loader_without_length_is_read_one_ahead():
    loader = Recording(5)
    asked = [loader.asked for _ in train(loader)]

    assert asked == [2, 3, 4, 5, 5]


@pytest.mark.parametrize("combined", [False, True])
def test_a_loader_that_ends_early_ends_the_epoch(combined):
    loader = Sized(3, announced=5)
    batches = train([loader] if combined else loader)

    assert [is_last for _, _, is_last in batches] == [False] * 3
    assert batches.ended_early
    loader.length = 5
    assert [is_last for _, _, is_last in batches][-1]
    assert not batches.ended_early


def test_empty_loaders_give_nothing():
    assert list(train(Sized(0))) == []
    assert list(train(Recording(0))) == []
    assert list(train([])) == []


def test_collections_keep_their_structure():
    batches = train({"a": Sized(2), "b": [Sized(3)]})

    assert [batch for batch, _, _ in batches] == [{"a": 0, "b": [0]}, {"a": 1, "b": [1]}, {"a": 0, "b": [2]}]
    assert [batch for batch, _, _ in train([Sized(2)])] == [[0], [1]]


def test_limits_of_the_combined_loader_count_too():
    loader = Sized(5)
    combined = CombinedLoader(loader)
    combined.limits = 2

    assert [batch for batch, _, _ in TrainBatches(combined)] == [0, 1]
    assert loader.asked == 2


@pytest.mark.parametrize("loader", [[1, 2, 3], (1, 2, 3), range(1, 4), torch.arange(1, 4), "abc"])
def test_plain_iterables_are_loaders_every_epoch(loader):
    batches = train(loader)

    assert [list(batches), list(batches)] == [[(b, i, i == 2) for i, b in enumerate(loader)]] * 2


def test_an_iterator_goes_on_in_the_next_epoch():
    batches = train(count(), limit=3)

    assert [[batch for batch, _, _ in batches] for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]


def test_a_generator_function_object_starts_again():
    class Stream:
        def __iter__(self):
            yield from (1, 2)

    batches = train(Stream())

    assert [[batch for batch, _, _ in batches] for _ in range(2)] == [[1, 2], [1, 2]]


def test_breaking_out_and_starting_again():
    batches = train(Sized(5))
    for _, batch_idx, _ in batches:
        if batch_idx == 2:
            break

    assert [batch for batch, _, _ in batches] == [0, 1, 2, 3, 4]


def test_wrapped_next_is_called_for_every_batch():
    calls = []

    def wrap_next(fetch):
        def timed():
            calls.append("next")
            return fetch()

        return timed

    assert len(list(train(Sized(3), wrap_next=wrap_next))) == 3
    assert len(calls) == 3
    assert len(list(train(Recording(3), wrap_next=wrap_next))) == 3
    assert list(EvalBatches(CombinedLoader([Sized(2)], "sequential"), [2], wrap_next=wrap_next))
    assert len(calls) == 3 + 4 + 2


def test_errors_of_a_loader_pass_through():
    class Breaks:
        def __iter__(self):
            yield 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(train(Breaks()))


def test_set_epoch_reaches_every_sampler():
    samplers = [DistributedSampler(range(4), num_replicas=2, rank=0) for _ in range(2)]
    inner = torch.utils.data.BatchSampler(samplers[1], 2, drop_last=False)
    loaders = [DataLoader(range(4), sampler=samplers[0]), DataLoader(range(4), batch_sampler=inner), [1, 2]]

    train(loaders).set_epoch(3)
    assert [sampler.epoch for sampler in samplers] == [3, 3]
    EvalBatches(CombinedLoader(loaders, "sequential"), [1, 1, 1]).set_epoch(4)
    assert [sampler.epoch for sampler in samplers] == [4, 4]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(6))


@pytest.mark.parametrize("dataset", [range(6), Stream()])
def test_persistent_workers_live_over_epochs_until_close(dataset):
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    batches = train(loader)
    first = [int(batch) for batch, _, _ in batches]
    workers = list(loader._iterator._workers)
    second = [int(batch) for batch, _, _ in batches]

    assert first == second == list(range(6))
    assert loader._iterator._workers == workers
    batches.close()
    assert not any(worker.is_alive() for worker in workers)
    assert [int(batch) for batch, _, _ in batches] == first
    batches.close()


@pytest.mark.parametrize("wrap", [lambda loader: loader, lambda loader: [loader]], ids=["single", "list"])
def test_workers_end_when_the_loop_breaks_out(wrap):
    loader = DataLoader(range(20), num_workers=1)
    opened = []
    original = loader._get_iterator

    def get_iterator():
        opened.append(original())
        return opened[-1]

    loader._get_iterator = get_iterator
    batches = train(wrap(loader))
    for _ in batches:
        break
    (workers,) = [iterator._workers for iterator in opened]
    opened.clear()

    assert not any(worker.is_alive() for worker in workers)


def test_close_inside_of_an_epoch_ends_it():
    loader = DataLoader(range(20), num_workers=1)
    batches = train(loader)
    running = iter(batches)
    next(running)

    batches.close()

    assert list(running) == []


# ---- evaluation


def test_sequential_evaluation_visits_each_loader_up_to_its_limit():
    loaders = [Sized(3), Recording(4), Sized(2), Sized(2)]
    batches = EvalBatches(CombinedLoader(loaders, "sequential"), [2, math.inf, 0, 5])

    items = list(batches)

    assert items == [(0, 0, 0), (1, 1, 0), *[(i, i, 1) for i in range(4)], (0, 0, 3), (1, 1, 3)]
    assert batches.num_batches == [2, math.inf, 0, 2]
    assert [loader.asked for loader in loaders] == [2, 4, 0, 2]
    assert loaders[2].passes == 0
    assert list(batches) == items


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min_size", [[0, 0], [1, 1]]),
        ("max_size", [[0, 0], [1, 1], [None, 2]]),
        ("max_size_cycle", [[0, 0], [1, 1], [0, 2]]),
    ],
)
def test_evaluation_together_gives_combined_batches(mode, expected):
    loaders = [Sized(5), Sized(5)]
    batches = EvalBatches(CombinedLoader(loaders, mode), [2, 3])

    assert list(batches) == [(batch, i, 0) for i, batch in enumerate(expected)]
    assert loaders[1].asked <= 3


def test_evaluation_without_loaders_runs_nothing():
    assert list(EvalBatches(CombinedLoader([], "sequential"), [])) == []
    assert list(EvalBatches(CombinedLoader([]), [])) == []


def test_evaluation_needs_one_limit_per_loader():
    with pytest.raises(ValueError, match="zip"):
        EvalBatches(CombinedLoader([Sized(1), Sized(1)], "sequential"), [1])


def test_evaluation_close_ends_persistent_workers():
    loader = DataLoader(range(6), batch_size=None, num_workers=1, persistent_workers=True)
    batches = EvalBatches(CombinedLoader([loader], "sequential"), [3])
    assert [[batch for batch, _, _ in batches] for _ in range(2)] == [[0, 1, 2]] * 2
    workers = list(loader._iterator._workers)

    batches.close()

    assert not any(worker.is_alive() for worker in workers)


# ---- costs


def test_a_batch_costs_far_less_than_a_microsecond_more_than_a_for_loop():
    number = 20_000
    data = list(range(number))
    train_batches = train(data)
    eval_batches = EvalBatches(CombinedLoader(data, "sequential"), [number])

    def plain():
        for _ in data:
            pass

    def training():
        for _, _, _ in train_batches:
            pass

    def evaluation():
        for _, _, _ in eval_batches:
            pass

    base, *ours = [min(timeit.repeat(f, number=1, repeat=7)) / number for f in (plain, training, evaluation)]

    assert max(ours) - base < 0.5e-6
