"""The metrics of an unfinished epoch on other numbers of ranks: their epoch values are those of all old ranks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fulmen.metrics.objects import load_metric_states, metric_states
from fulmen.metrics.ranks import reduce_epoch
from fulmen.metrics.redivide import redivide_metric_states, redivide_rows
from fulmen.metrics.rules import LogOptions, settle
from fulmen.metrics.store import LoggedMetric, LoggedValue, MetricStore

FROM_TO = [(4, 2), (4, 3), (4, 1), (1, 2), (2, 4), (3, 3)]


class Exchange:
    """What ranks send each other; the answer is there once all of them have sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    @property
    def data_parallel_rank(self) -> int:
        return len(self.sent)

    def gather_objects(self, obj: Any) -> list[Any]:
        self.sent.append(obj)
        return self.sent


def log(store: MetricStore, name: str, reduction: str, value: float, weight: int, **options: Any) -> None:
    given_options = LogOptions(False, True, False, True, reduction, False, False, None, True, None, False)._replace(
        **options
    )
    entry = store.entries.get(("training_step", name))
    if entry is None:
        settled = settle("training_step", name, value, given_options, dataloader_idx=None)
        store.add("training_step", name, entry := LoggedValue(name, given_options, settled, store))
    assert isinstance(entry, LoggedValue)
    entry.add(value, weight)


def epoch_values(stores: list[MetricStore]) -> dict[str, float]:
    """Reduce over ranks, as all of them do together."""
    exchange: Any = Exchange()
    for store in stores:
        reduce_epoch(store, exchange, None)  # the last one hears everybody
    return {entry.settled.plain_name: entry.epoch_tensor().item() for _, entry in stores[-1].epoch_entries()}


def restored(rows: list[dict[str, Any]]) -> MetricStore:
    store = MetricStore(is_training=True)
    store.load_state_dict(rows, nn.Module())
    return store


# ---- numbers


@settings(max_examples=40, deadline=None)
@given(
    by_rank=st.lists(
        st.lists(st.tuples(st.floats(-9, 9, width=16), st.integers(1, 8)), max_size=4), min_size=1, max_size=5
    ),
    world_size=st.integers(1, 6),
)
def test_epoch_values_do_not_depend_on_the_number_of_ranks_that_go_on(
    by_rank: list[list[tuple[float, int]]], world_size: int
) -> None:
    old = []
    for batches in by_rank:
        old.append(MetricStore(is_training=True))
        for value, weight in batches:
            for reduction in ("mean", "sum", "min", "max"):
                log(old[-1], reduction, reduction, value, weight)
    rows = [store.state_dict() for store in old]
    new = [restored(redivide_rows(rows, rank=rank, world_size=world_size)) for rank in range(world_size)]

    assert epoch_values(new) == pytest.approx(epoch_values(old))


def test_a_rank_keeps_the_latest_value_that_it_has_logged() -> None:
    rows = []
    for rank in range(4):
        store = MetricStore(is_training=True)
        log(store, "own", "sum", float(rank), 1, on_step=True)
        rows.append(store.state_dict())

    assert [[row["value"] for row in redivide_rows(rows, rank=r, world_size=2)] for r in range(2)] == [[0.0], [1.0]]
    assert [redivide_rows(rows, rank=r, world_size=5)[:1] for r in (3, 4)] == [rows[3], []]


def test_nan_stays_nan_in_an_extreme() -> None:
    rows = []
    for value in (1.0, float("nan"), 2.0):
        store = MetricStore(is_training=True)
        log(store, "worst", "max", value, 1)
        rows.append(store.state_dict())

    (row,) = redivide_rows(rows, rank=0, world_size=1)

    assert row["total"] != row["total"]


def test_a_name_that_one_rank_has_logged_is_not_lost() -> None:
    rows = []
    for rank in range(3):
        store = MetricStore(is_training=True)
        if rank == 2:
            log(store, "rare", "mean", 5.0, 2)
        rows.append(store.state_dict())

    (row,) = redivide_rows(rows, rank=0, world_size=2)

    assert (row["total"], row["weight"]) == (10.0, 2)


# ---- torchmetrics objects


class Own(torchmetrics.Metric):
    """A metric with a state of each kind."""

    sum: Tensor
    mean: Tensor
    most: Tensor
    least: Tensor
    custom: Tensor
    all: list[Tensor]
    listed: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sum", torch.tensor(0.0), "sum")
        self.add_state("mean", torch.tensor(0.0), "mean")
        self.add_state("most", torch.tensor(-9.0), "max")
        self.add_state("least", torch.tensor(9.0), "min")
        self.add_state("custom", torch.tensor(1.0), lambda stacked: stacked.prod(0))
        self.add_state("all", [], "cat")
        self.add_state("listed", [], None)

    def update(self, value: Tensor) -> None:
        self.sum, self.mean = self.sum + value, value
        self.most, self.least = torch.maximum(self.most, value), torch.minimum(self.least, value)
        self.custom = self.custom * value
        self.all.append(value.reshape(1))
        self.listed.append(value.reshape(1))

    def compute(self) -> Tensor:
        return self.sum


class Model(nn.Module):
    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.metric = metric


def synced(metrics: list[Any]) -> Any:
    """Return a metric as it is on each rank while all of them compute it."""
    gathered = [{name: getattr(metric, name) for name in metric._defaults} for metric in metrics]
    one = metrics[0].clone()
    for name, reduce in one._reductions.items():
        values = [each[name] for each in gathered]
        if isinstance(values[0], list):
            setattr(one, name, sorted(float(item) for items in values for item in items))
        else:
            setattr(one, name, reduce(torch.stack(values)).item())
    return {name: getattr(one, name) for name in one._defaults}


@pytest.mark.parametrize(("old_size", "new_size"), FROM_TO)
def test_states_of_every_reduction_are_those_of_all_ranks(old_size: int, new_size: int) -> None:
    old = [Model(Own()) for _ in range(old_size)]
    for rank, model in enumerate(old):
        model.metric.update(torch.tensor(1.5 + rank))
    states = [metric_states(model) for model in old]
    new = [Model(Own()) for _ in range(new_size)]
    for rank, model in enumerate(new):
        load_metric_states(model, redivide_metric_states(model, states, rank=rank, world_size=new_size))

    assert synced([model.metric for model in new]) == synced([model.metric for model in old])
    assert all(torch.equal(model.metric._defaults["sum"], torch.tensor(0.0)) for model in new)


def test_a_metric_of_a_new_rank_can_be_updated_and_reset() -> None:
    old, new = Model(torchmetrics.MeanMetric()), Model(torchmetrics.MeanMetric())
    old.metric.update(3.0)
    load_metric_states(new, redivide_metric_states(new, [metric_states(old)], rank=1, world_size=2))
    new.metric.update(7.0)

    assert new.metric.compute() == 7.0
    new.metric.reset()
    new.metric.update(1.0)
    assert new.metric.compute() == 1.0


def test_a_metric_whose_states_cannot_be_merged_is_named() -> None:
    old = [Model(torchmetrics.PearsonCorrCoef()) for _ in range(3)]
    for model in old:
        model.metric.update(torch.rand(5), torch.rand(5))
    states = [metric_states(model) for model in old]

    with pytest.warns(UserWarning, match=r"`PearsonCorrCoef` at 'metric'.*'mean_x' has no `dist_reduce_fx`"):
        first = redivide_metric_states(old[0], states, rank=0, world_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        growing = redivide_metric_states(old[0], states, rank=2, world_size=4)

    assert torch.equal(first["metric"]["states"]["mean_x"], states[0]["metric"]["states"]["mean_x"])
    assert torch.equal(growing["metric"]["states"]["mean_x"], states[2]["metric"]["states"]["mean_x"])


def test_a_metric_object_that_was_logged_is_logged_on_the_ranks_that_take_it_over() -> None:
    model = Model(torchmetrics.SumMetric())
    options = LogOptions(False, True, False, True, "mean", False, False, None, True, None, False)
    store = MetricStore(is_training=True)
    settled = settle("training_step", "seen", model.metric, options, dataloader_idx=None)
    store.add("training_step", "seen", entry := LoggedMetric(model.metric, options, settled, "metric"))
    entry.add(model.metric, None)

    rows = redivide_rows([store.state_dict()] * 3, rank=0, world_size=2)

    assert rows == store.state_dict()
