from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import BasePredictionWriter
from fulmen.utilities.exceptions import MisconfigurationException
from tests.distributed_harness import run_ranks
from tests.support import quiet


class Tens(LightningModule):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
        values: torch.Tensor = batch[0] if isinstance(batch, list) else batch
        return values * 10


class Writer(BasePredictionWriter):
    """Keeps what it is given to write."""

    def __init__(self, write_interval: Any = "batch_and_epoch") -> None:
        super().__init__(write_interval)
        self.batches: list[tuple[Any, ...]] = []
        self.epochs: list[tuple[Any, Any]] = []

    def write_on_batch_end(
        self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, batch: Any, batch_idx: int,
        dataloader_idx: int,
    ) -> None:  # fmt: skip
        self.batches.append((dataloader_idx, batch_idx, prediction.tolist(), list(batch_indices)))

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.epochs.append((predictions, batch_indices))


def loader(size: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(size)), batch_size=2, **options)


def predict(tmp_path: Path, loaders: Any, interval: str = "batch_and_epoch", **arguments: Any) -> Writer:
    writer = Writer(interval)
    Trainer(**quiet(tmp_path, callbacks=writer)).predict(Tens(), loaders, **arguments)
    return writer


def test_each_batch_comes_with_the_indices_of_its_samples(tmp_path: Path) -> None:
    writer = predict(tmp_path, loader(5))

    assert writer.batches == [(0, 0, [0, 10], [0, 1]), (0, 1, [20, 30], [2, 3]), (0, 2, [40], [4])]
    [(predictions, indices)] = writer.epochs
    assert [each.tolist() for each in predictions] == [[0, 10], [20, 30], [40]]
    assert indices == [[[0, 1], [2, 3], [4]]]  # by loader, also if there is one


def test_several_loaders_are_told_apart(tmp_path: Path) -> None:
    writer = predict(tmp_path, [loader(3), loader(2)])

    assert [each[:2] for each in writer.batches] == [(0, 0), (0, 1), (1, 0)]
    [(predictions, indices)] = writer.epochs
    assert [[each.tolist() for each in of_loader] for of_loader in predictions] == [[[0, 10], [20]], [[0, 10]]]
    assert indices == [[[0, 1], [2]], [[0, 1]]]


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
def test_indices_are_right_in_a_shuffled_order_and_with_workers(tmp_path: Path) -> None:
    writer = predict(tmp_path, loader(9, shuffle=True, num_workers=1, multiprocessing_context="fork"))

    assert [value for *_, values, _ in writer.batches for value in values] == [
        10 * index for *_, indices in writer.batches for index in indices
    ]


def test_predictions_are_kept_for_the_end_though_they_are_not_returned(tmp_path: Path) -> None:
    writer = predict(tmp_path, loader(3), "epoch", return_predictions=False)

    assert writer.batches == []
    assert [each.tolist() for each in writer.epochs[0][0]] == [[0, 10], [20]]


def test_a_stream_has_no_indices(tmp_path: Path) -> None:
    class Stream(IterableDataset[torch.Tensor]):
        def __iter__(self) -> Any:
            return iter(torch.arange(3))

    writer = predict(tmp_path, DataLoader(Stream(), batch_size=2), "batch")

    assert writer.batches == [(0, 0, [0, 10], []), (0, 1, [20], [])]
    assert writer.epochs == []


@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_what_a_subclass_must_write_is_said(interval: Any, tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, callbacks=BasePredictionWriter(interval)))
    with pytest.raises(NotImplementedError, match=f"write_on_{interval}_end"):
        trainer.predict(Tens(), loader(2))


def test_an_unknown_interval_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"'sometimes'.*'batch_and_epoch'"):
        BasePredictionWriter("sometimes")  # type: ignore[arg-type]


def _predict_on_this_rank(folder: str) -> tuple[list[Any], list[Any]]:
    writer = Writer()
    arguments = quiet(Path(folder), callbacks=writer, devices=2, strategy="ddp")
    Trainer(**arguments).predict(Tens(), loader(9), return_predictions=False)
    return writer.batches, writer.epochs


@pytest.mark.slow
def test_each_rank_writes_its_share_with_the_right_indices(tmp_path: Path) -> None:
    of_ranks = run_ranks(_predict_on_this_rank, 2, str(tmp_path), timeout=100)
    seen = sorted(index for batches, _ in of_ranks for *_, indices in batches for index in indices)

    assert seen == list(range(9))
    for batches, epochs in of_ranks:
        assert all(values == [10 * index for index in indices] for *_, values, indices in batches)
        [(predictions, indices)] = epochs
        assert [each.tolist() for each in predictions] == [values for *_, values, _ in batches]
        assert indices == [[each for *_, each in batches]]
