"""Counting, checking and preparing loaders."""

from __future__ import annotations

import math
import os
import warnings
from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.rebuild import recording_dataloader_arguments
from fulmen.engine.loaders import (
    check_length,
    combine,
    eval_num_batches,
    num_batches,
    parse_limit,
    prepare_eval_loaders,
    prepare_predict_loader,
    prepare_train_loaders,
    seed_workers,
    seen_batch_indices,
    sequential_for_overfit,
    warn_if_logging_is_sparse,
    warn_worker_count,
)
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.warnings import PossibleUserWarning

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
BatchSampler: Any = torch.utils.data.BatchSampler
DataLoader: Any = torch.utils.data.DataLoader
IterableDataset: Any = torch.utils.data.IterableDataset

DATA = list(range(8))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class SizedStream(Stream):
    def __len__(self):
        return len(DATA)


class Batches:
    """A batch sampler that is none of torch's."""

    def __iter__(self):
        return iter([[i] for i in DATA])

    def __len__(self):
        return len(DATA)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """As many cores as no warning about workers needs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


# ---- limits


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (1, 1), (7, 7), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (2.0, 2), (True, 1)]
)
def test_limits_are_counts_or_fractions(value, expected):
    parsed = parse_limit(value, "limit_train_batches")

    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize("value", [1.2, -1, -0.5, math.nan, math.inf])
def test_other_numbers_are_refused(value):
    with pytest.raises(MisconfigurationException, match=r"Trainer\(limit_test_batches=.*has to be"):
        parse_limit(value, "limit_test_batches")


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="limit_test_batches='a'"):
        parse_limit("a", "limit_test_batches")  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, 0), (3, 3), (9, 8), (0.0, 0), (0.5, 4), (0.3, 2), (1.0, 8), (2.0, 2)]
)
def test_number_of_batches_of_a_sized_loader(limit, expected):
    assert num_batches(DataLoader(DATA), limit, name="limit_train_batches") == expected
    assert num_batches(CombinedLoader(DATA), limit, name="limit_train_batches") == expected


def test_number_of_batches_of_a_loader_without_length():
    loader = DataLoader(Stream())

    assert num_batches(loader, 1.0, name="limit_val_batches") == math.inf
    assert num_batches(loader, 3, name="limit_val_batches") == 3
    assert num_batches(loader, 0.0, name="limit_val_batches") == 0
    with pytest.raises(MisconfigurationException, match=r"limit_val_batches.*must be `1.0` or an int"):
        num_batches(loader, 0.5, name="limit_val_batches")


def test_a_fraction_of_nothing_is_refused():
    with pytest.raises(MisconfigurationException, match=r"`val_dataloader`.*Try at least `limit_val_batches=0.125`"):
        num_batches(DataLoader(DATA), 0.1, name="limit_val_batches")
    assert num_batches(DataLoader([]), 0.1, name="limit_val_batches") == 0


def test_the_whole_collection_counts_in_training_and_each_loader_in_evaluation():
    loaders = [DataLoader(DATA), DataLoader(DATA[:4])]

    assert num_batches(CombinedLoader(loaders, "max_size_cycle"), 0.5, name="limit_train_batches") == 4
    for mode in ("sequential", "max_size"):
        assert eval_num_batches(CombinedLoader(loaders, mode), 0.5, name="limit_val_batches") == [4, 2]
    combined = CombinedLoader(loaders, "sequential")
    combined.limits = [1, 9]
    assert eval_num_batches(combined, 3, name="limit_val_batches") == [1, 3]


def test_sparse_logging_warns():
    with pytest.warns(PossibleUserWarning, match=r"training batches \(5\) is smaller.*log_every_n_steps=50"):
        warn_if_logging_is_sparse(5, 50)
    warn_if_logging_is_sparse(50, 50)
    warn_if_logging_is_sparse(5, 0)
    warn_if_logging_is_sparse(0, 50)
    warn_if_logging_is_sparse(math.inf, 50)


# ---- which loaders


def test_combining_checks_every_leaf():
    assert combine({"a": DATA, "b": range(2)}, mode="max_size", origin="x").mode == "max_size"
    own = CombinedLoader(DATA, "min_size")
    assert combine(own, mode="max_size", origin="x") is own
    for wrong in (5, [DATA, [[1], 5]], None):
        with pytest.raises(TypeError, match=r"`Trainer.fit\(train_dataloaders=...\)`. Found (5|None)"):
            combine(wrong, mode="max_size", origin="Trainer.fit(train_dataloaders=...)")


def test_overfitting_needs_a_fixed_order():
    in_order = DataLoader(DATA, batch_size=2)
    assert sequential_for_overfit(in_order, name="train") is in_order
    assert sequential_for_overfit(DATA, name="train") is DATA
    stream = DataLoader(Stream())
    assert sequential_for_overfit(stream, name="train") is stream
    own = DataLoader(DATA, batch_sampler=Batches())
    assert sequential_for_overfit(own, name="train") is own


@pytest.mark.parametrize(
    "kwargs",
    [
        {"batch_size": 2, "shuffle": True},
        {"batch_size": 2, "sampler": SubsetRandomSampler([5, 6])},
        {"batch_sampler": BatchSampler(RandomSampler(DATA), 2, False)},
    ],
    ids=["shuffle", "sampler", "batch_sampler"],
)
def test_overfitting_replaces_shuffling_samplers(kwargs):
    loader = DataLoader(DATA, **kwargs)

    with pytest.warns(UserWarning, match="turning off the val dataloader shuffling"):
        replaced = sequential_for_overfit(loader, name="val")

    assert [batch.tolist() for batch in replaced] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_preparing_replaces_the_loaders_in_their_structure():
    shuffled = DataLoader(DATA, shuffle=True)
    combined = CombinedLoader({"a": shuffled, "b": [DATA]}, "max_size_cycle")
    prepare_train_loaders(combined, overfit=False)
    assert combined.flattened == [shuffled, DATA]
    with pytest.warns(UserWarning, match="turning off the train dataloader shuffling"):
        prepare_train_loaders(combined, overfit=True)
    assert isinstance(combined.iterables["a"].sampler, SequentialSampler)


def test_shuffled_evaluation_warns():
    for loader in (
        DataLoader(DATA, shuffle=True),
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 2, False)),
    ):
        with pytest.warns(PossibleUserWarning, match="Your `val_dataloader`'s sampler has shuffling enabled"):
            prepare_eval_loaders(CombinedLoader(loader, "sequential"), stage="val")
    quiet = CombinedLoader([DataLoader(DATA), DataLoader(DATA, sampler=SubsetRandomSampler([0])), DATA], "sequential")
    prepare_eval_loaders(quiet, stage="val")
    with pytest.warns(UserWarning, match="turning off the val"):
        prepare_eval_loaders(CombinedLoader(DataLoader(DATA, shuffle=True), "sequential"), stage="val", overfit=True)


# ---- predict


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(DATA, batch_size=3, drop_last=True),
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 3, True)),
        lambda: DataLoader(DATA, batch_size=3, drop_last=True, num_workers=1),
    ],
    ids=["drop_last", "batch_sampler", "workers"],
)
def test_prediction_sees_every_sample_and_knows_its_indices(make):
    combined = CombinedLoader([make()], "sequential")

    prepare_eval_loaders(combined, stage="predict")

    (loader,) = combined.flattened
    for _ in range(2):
        for batch_idx, batch in enumerate(loader):
            assert seen_batch_indices(loader, batch_idx) == batch.tolist()
        assert list(chain.from_iterable(loader.batch_sampler.seen_batch_indices)) == DATA
    assert prepare_predict_loader(loader) is loader


def test_prediction_in_shuffled_order_records_that_order():
    with pytest.warns(PossibleUserWarning, match="predict_dataloader"):
        prepare_eval_loaders(
            combined := CombinedLoader(DataLoader(DATA, 3, shuffle=True), "sequential"), stage="predict"
        )
    loader = combined.flattened[0]

    batches = [batch.tolist() for batch in loader]

    assert batches == loader.batch_sampler.seen_batch_indices
    assert sorted(chain.from_iterable(batches)) == DATA


def test_prediction_on_streams_lists_and_single_samples_records_no_indices():
    stream = prepare_predict_loader(DataLoader(Stream(), batch_size=3, drop_last=True))
    assert [len(batch) for batch in stream] == [3, 3, 2]
    assert seen_batch_indices(stream, 0) == []
    single = DataLoader(DATA, batch_size=None)
    assert prepare_predict_loader(single) is single
    assert prepare_predict_loader(DATA) is DATA


def test_prediction_with_a_batch_sampler_of_another_make_warns():
    with pytest.warns(PossibleUserWarning, match="custom batch sampler `Batches`"):
        loader = prepare_predict_loader(DataLoader(DATA, batch_sampler=Batches()))

    assert [batch.tolist() for batch in loader] == loader.batch_sampler.seen_batch_indices == [[i] for i in DATA]


def test_prediction_with_a_batch_sampler_subclass_keeps_its_class():
    class Own(BatchSampler):
        def __init__(self, sampler, batch_size, drop_last, extra):
            super().__init__(sampler, batch_size, drop_last)

    with recording_dataloader_arguments():
        loader = DataLoader(DATA, batch_sampler=Own(SequentialSampler(DATA), 3, True, extra=1))
    prepared = prepare_predict_loader(loader)

    assert type(prepared.batch_sampler.batch_sampler) is Own
    assert [len(batch) for batch in prepared] == [3, 3, 2]


def test_prediction_needs_a_loader_that_can_be_made_again():
    class Hidden(DataLoader):
        def __init__(self, number):
            super().__init__(DATA[:number])

    with pytest.raises(MisconfigurationException, match="number"):
        prepare_predict_loader(Hidden(3))


# ---- workers and lengths


def test_workers_are_seeded_on_request(monkeypatch):
    loader: Any = DataLoader(DATA, num_workers=1)
    seed_workers(loader, rank=0)
    assert loader.worker_init_fn is None
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    seed_workers(loader, rank=3)
    init: Any = loader.worker_init_fn
    assert init.keywords == {"rank": 3}
    own = DataLoader(DATA, worker_init_fn=print)
    seed_workers(own, rank=0)
    assert own.worker_init_fn is print
    seed_workers(DATA, rank=0)


class Noise(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(())


def test_seeded_workers_draw_other_numbers_on_each_rank(monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")

    def drawn(rank):
        torch.manual_seed(1)
        loader = DataLoader(Noise(), num_workers=2)
        seed_workers(loader, rank=rank)
        return [batch.item() for batch in loader]

    assert drawn(0) == drawn(0)
    assert len({*drawn(0), *drawn(1)}) == 8


@pytest.mark.parametrize(("cores", "workers", "warns"), [(2, 0, False), (3, 0, True), (8, 1, True), (8, 2, False)])
def test_few_workers_warn_where_more_could_run(monkeypatch, cores, workers, warns):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    loader = DataLoader(DATA, num_workers=workers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_worker_count(loader, name="val_dataloader")
        warn_worker_count(DATA, name="val_dataloader")

    assert [w.category for w in caught] == [PossibleUserWarning] * warns
    if warns:
        assert "'val_dataloader' does not have many workers" in str(caught[0].message)


def test_spawned_workers_should_persist():
    with pytest.warns(UserWarning, match="persistent_workers=True"):
        warn_worker_count(DataLoader(DATA, num_workers=2, multiprocessing_context="spawn"), name="val_dataloader")
    warn_worker_count(DataLoader(DATA, num_workers=2, multiprocessing_context="fork"), name="val_dataloader")
    warn_worker_count(
        DataLoader(DATA, num_workers=2, multiprocessing_context="spawn", persistent_workers=True), name="val_dataloader"
    )


def test_doubtful_lengths_warn():
    with pytest.warns(UserWarning, match="Total length of `DataLoader` across ranks is zero"):
        check_length(DataLoader([]), name="train_dataloader")
    with pytest.warns(UserWarning, match="`IterableDataset` of the `train_dataloader` has `__len__` defined"):
        check_length(DataLoader(SizedStream()), name="train_dataloader")
    check_length(DataLoader(Stream()), name="train_dataloader")
    check_length(DataLoader(DATA), name="train_dataloader")
