from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningDataModule, Trainer
from fulmen.callbacks import BatchSizeFinder
from fulmen.tuner import Tuner
from fulmen.tuner.batch_size import BatchSizeSearch
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet
from tests.tuner.models import Model, ready_state

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def exhausted() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def limited(limit: int, **settings: Any) -> Model:
    model = Model(**settings)
    model.limit, model.error = limit, exhausted
    return model


# ---- which size comes out


@pytest.mark.parametrize(
    ("limit", "settings", "expected", "tried"),
    [
        (20, {}, 16, [2, 4, 8, 16, 32]),
        (20, {"mode": "binsearch", "margin": 0}, 20, [2, 4, 8, 16, 32, 24, 20, 22, 21]),
        (20, {"mode": "binsearch"}, 19, [2, 4, 8, 16, 32, 24, 20, 22, 21]),
        (20, {"init_val": 50}, 12, [50, 25, 12]),
        (20, {"init_val": 50, "mode": "binsearch", "margin": 0}, 20, [50, 25, 12, 18, 21, 19, 20]),
        (1, {"init_val": 8}, 1, [8, 4, 2, 1]),
        (999, {}, 100, [2, 4, 8, 16, 32, 64, 100]),
        (999, {"mode": "binsearch"}, 100, [2, 4, 8, 16, 32, 64, 100]),
        (999, {"max_val": 20}, 20, [2, 4, 8, 16, 20]),
        (999, {"max_trials": 3}, 8, [2, 4, 8]),
        (999, {"init_val": 500}, 100, [500]),
    ],
)
def test_sizes_are_tried_in_order_and_only_one_that_fits_comes_out(limit, settings, expected, tried):
    sizes: list[int] = []

    def fits(size: int) -> bool:
        sizes.append(size)
        return bool(size <= limit)

    assert BatchSizeSearch(**settings).largest(fits, lambda: 100) == expected
    assert sizes == tried


def test_a_single_sample_that_does_not_fit_is_an_error_not_an_endless_search(tmp_path):
    with pytest.raises(RuntimeError, match="the smallest tried is 1"):
        Tuner(Trainer(**quiet(tmp_path))).scale_batch_size(limited(0))


@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_largest_size_that_fits_is_found_for_each_method_and_set(tmp_path, method):
    model = limited(20, num_samples=300)
    best = Tuner(Trainer(**quiet(tmp_path))).scale_batch_size(model, method=method, mode="binsearch", margin=0)

    assert best == model.batch_size == 20
    assert model.sizes == []  # notes of the search are gone


# ---- how running out of memory shows


@pytest.mark.parametrize(
    "error",
    [
        exhausted,
        lambda: RuntimeError("CUDA out of memory. Tried to allocate"),
        lambda: RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if"),
        lambda: RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        lambda: MemoryError("Unable to allocate"),
    ],
)
def test_every_kind_of_out_of_memory_counts(tmp_path, error):
    model = limited(5)
    model.error = error

    assert Tuner(Trainer(**quiet(tmp_path))).scale_batch_size(model) == 4


def test_a_real_failure_of_the_cpu_allocator_counts(tmp_path):
    class Greedy(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            torch.empty(2 ** (44 if len(batch[0]) > 10 else 4))  # 64 TiB
            return super().training_step(batch, batch_idx)

    assert Tuner(Trainer(**quiet(tmp_path))).scale_batch_size(Greedy()) == 8


def test_another_error_ends_the_search_and_everything_is_put_back(tmp_path):
    model, trainer = Model(), Trainer(**quiet(tmp_path))
    model.limit, model.error = 5, RuntimeError("shapes do not match")
    before, attributes = ready_state(model), dict(vars(trainer))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Tuner(trainer).scale_batch_size(model)

    assert ready_state(model) == before
    assert all(vars(trainer)[name] is value for name, value in attributes.items())
    assert os.listdir(tmp_path) == []


# ---- what is left behind


def test_fit_after_a_search_equals_a_fit_with_that_batch_size(tmp_path):
    models = []
    for search in (False, True):
        torch.manual_seed(1)
        model, trainer = limited(20, batch_size=2 if search else 16), Trainer(**quiet(tmp_path, max_epochs=2))
        if search:
            Tuner(trainer).scale_batch_size(model)
        trainer.fit(model)
        models.append(ready_state(model))

    assert models[0] == models[1]


def test_batch_size_of_a_datamodule_and_its_hparams_is_set(tmp_path):
    class Data(LightningDataModule):
        def __init__(self, size: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.ones(64, 4)), self.hparams.size)

    data, model = Data(), limited(9)

    assert Tuner(Trainer(**quiet(tmp_path))).scale_batch_size(model, data, batch_arg_name="size") == 8
    assert data.hparams.size == 8
    assert model.batch_size == 2


# ---- what is refused


class Deaf(Model):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(64, 4)), 4)


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (Model, {"method": "train"}, ValueError, r"method='train'"),
        (Model, {"mode": "linear"}, MisconfigurationException, "`mode='linear'`"),
        (Model, {"batch_arg_name": "size"}, MisconfigurationException, "'size'"),
        (Model, {"train_dataloaders": [torch.ones(2, 4)]}, MisconfigurationException, "they are made already"),
        (Model, {"dataloaders": [1]}, MisconfigurationException, "`dataloaders` is for"),
        (Model, {"method": "test", "val_dataloaders": [1]}, MisconfigurationException, "are for `method='fit'`"),
        (Model, {"init_val": 0}, ValueError, "`init_val=0`"),
        (Model, {"margin": 1.0}, ValueError, "`margin=1.0`"),
        (Model, {"margin": "x"}, ValueError, "`margin='x'`"),
        (Model, {"batch_arg_name": 3}, TypeError, "`batch_arg_name=3`"),
        (Deaf, {}, MisconfigurationException, "made batches of"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, make, arguments, error, message):
    trainer = Trainer(**quiet(tmp_path))
    attributes = dict(vars(trainer))
    with pytest.raises(error, match=message):
        Tuner(trainer).scale_batch_size(make(), **arguments)

    assert all(vars(trainer)[name] is value for name, value in attributes.items())


def test_batches_that_are_divided_to_fit_are_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="nothing to search for"):
        Tuner(Trainer(**quiet(tmp_path, accumulate_grad_batches="auto"))).scale_batch_size(Model())


def test_tuner_refuses_a_trainer_whose_callback_searches_too(tmp_path):
    with pytest.raises(ValueError, match="batch size in each fit"):
        Tuner(Trainer(**quiet(tmp_path, callbacks=BatchSizeFinder()))).scale_batch_size(Model())


def test_fast_dev_run_is_not_searched(tmp_path):
    with pytest.warns(UserWarning, match="`scale_batch_size` is skipped"):
        assert Tuner(Trainer(**quiet(tmp_path, fast_dev_run=True))).scale_batch_size(Model()) is None
