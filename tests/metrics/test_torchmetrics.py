from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from fulmen import LightningModule, Trainer
from tests.distributed_harness import run_all, run_ranks
from tests.metrics import collections as runs
from tests.support import quiet

ORDERS = ["update, log", "log, update", "forward", "one by one"]
ON_RANKS = ["log, update", "forward"]  # processes take seconds to start, and each step is slow there
EPOCH = pytest.approx(runs.expected(runs.loader()))
LOADERS = [
    {f"{name}/dataloader_idx_{idx}": pytest.approx(value) for name, value in runs.expected(each).items()}
    for idx, each in enumerate((runs.loader(37), runs.loader(22, seed=5)))
]


@pytest.mark.parametrize("order", ORDERS)
def test_a_compute_group_gives_the_scores_of_each_epoch(tmp_path, order):
    assert runs.train(str(tmp_path), order) == [EPOCH] * 3


@pytest.mark.parametrize("order", ORDERS)
def test_each_dataloader_has_scores_of_its_own(tmp_path, order):
    assert runs.validate(str(tmp_path), order) == LOADERS


@pytest.mark.parametrize("order", ORDERS)
def test_an_epoch_that_was_interrupted_has_the_scores_of_all_its_samples(tmp_path, order):
    assert runs.resumed(str(tmp_path), order) == [EPOCH] * 2


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    calls = [(run, order) for run in (runs.train, runs.validate, runs.resumed) for order in ON_RANKS]
    jobs = [(run, (str(tmp_path_factory.mktemp("run")), order)) for run, order in calls]
    return [dict(zip(calls, results, strict=True)) for results in run_ranks(run_all, 2, jobs, timeout=250)]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("order", ON_RANKS)
def test_two_ranks_have_the_scores_of_one(on_two_ranks, order):
    for rank in on_two_ranks:
        assert rank[runs.train, order] == [EPOCH] * 3
        assert rank[runs.validate, order] == LOADERS
        assert rank[runs.resumed, order] == [EPOCH] * 2


# ---- single metrics


class One(LightningModule):
    """Logs one metric object of the numbers that it trains on."""

    def __init__(self, metric: Any, **options: Any) -> None:
        super().__init__()
        self.metric = metric
        self.options = options
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.metric(batch[0])
        self.log("m", self.metric, **self.options)
        return self.weight.square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Product(torchmetrics.Metric):
    """A reduction of the user's own."""

    full_state_update = False
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.ones(()), dist_reduce_fx=lambda rows: rows.prod(0))

    def update(self, numbers: Tensor) -> None:
        self.total = self.total * numbers.prod()

    def compute(self) -> Tensor:
        return self.total


NUMBERS = torch.tensor([1.0, 2.0, -3.0, 4.0, 0.5, 2.5, 1.5])


@pytest.mark.parametrize(
    ("metric", "step", "epoch"),
    [
        (torchmetrics.MeanMetric(), 1.5, NUMBERS.mean()),
        (torchmetrics.SumMetric(), 1.5, NUMBERS.sum()),
        (torchmetrics.MaxMetric(), 1.5, NUMBERS.max()),
        (torchmetrics.MinMetric(), 1.5, NUMBERS.min()),
        (Product(), 1.5, NUMBERS.prod()),
        (torchmetrics.MinMaxMetric(torchmetrics.MeanMetric()), None, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torchmetrics.Metric) else "",
)
def test_the_step_shows_the_last_batch_and_the_epoch_all_of_them(tmp_path, metric, step, epoch):
    model = One(metric, on_step=True, on_epoch=True)
    trainer = Trainer(**quiet(tmp_path, max_epochs=2, log_every_n_steps=1))
    if step is None:  # it computes several values
        with pytest.raises(ValueError, match="log_dict"):
            trainer.fit(model, DataLoader(TensorDataset(NUMBERS), 2))
        return
    trainer.fit(model, DataLoader(TensorDataset(NUMBERS), 2))

    assert trainer.callback_metrics["m_step"].item() == step
    assert trainer.callback_metrics["m_epoch"].item() == pytest.approx(epoch.item())
    assert not metric.update_called


def test_a_metric_that_is_logged_per_step_only_begins_each_epoch_anew(tmp_path):
    seen: list[float] = []

    class Looks(One):
        def on_train_epoch_start(self) -> None:
            seen.append(self.metric.sum_value.item())

    metric = torchmetrics.SumMetric()
    trainer = Trainer(**quiet(tmp_path, max_epochs=3, log_every_n_steps=1))
    trainer.fit(Looks(metric, on_step=True, on_epoch=False), DataLoader(TensorDataset(NUMBERS), 2))

    assert seen == [0.0] * 3
    assert not metric.update_called


def test_one_metric_for_two_dataloaders_warns_that_it_mixes_them(tmp_path):
    class Shared(One):
        def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
            self.metric.update(batch[0])
            self.log("m", self.metric)

    loaders = [DataLoader(TensorDataset(NUMBERS[:3])), DataLoader(TensorDataset(NUMBERS[3:]))]
    with pytest.warns(UserWarning, match="same SumMetric for dataloaders 0 and 1"):
        Trainer(**quiet(tmp_path)).validate(Shared(torchmetrics.SumMetric()), loaders, verbose=False)


def test_a_collection_may_hold_metrics_with_and_without_a_group(tmp_path):
    class Mixed(One):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.metric.update(batch[0])
            self.log_dict(self.metric, on_step=False, on_epoch=True)
            return self.weight.square()

    metric = MetricCollection({"sum": torchmetrics.SumMetric(), "max": torchmetrics.MaxMetric()}, prefix="t_")
    trainer = Trainer(**quiet(tmp_path, max_epochs=2, log_every_n_steps=1))
    trainer.fit(Mixed(metric), DataLoader(TensorDataset(NUMBERS), 2))

    assert trainer.callback_metrics["t_sum"].item() == NUMBERS.sum()
    assert trainer.callback_metrics["t_max"].item() == 4.0
    assert not math.isnan(trainer.callback_metrics["t_sum"].item())
