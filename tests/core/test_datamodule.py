"""LightningDataModule."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from fulmen.core.datamodule import LightningDataModule
from fulmen.core.hparams import dump_hparams
from fulmen.utilities.exceptions import MisconfigurationException


class Numbers(Dataset[int]):
    def __len__(self):
        return 4

    def __getitem__(self, idx):
        return idx


class Stream(IterableDataset[int]):
    def __iter__(self):
        return iter(range(3))


class Digits(LightningDataModule):
    def __init__(self, size=4, batch_size=2):
        super().__init__()
        self.save_hyperparameters()
        self.seen = 0

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state_dict):
        self.seen = state_dict["seen"]


def test_new_datamodule_has_the_documented_defaults():
    datamodule = LightningDataModule()

    assert datamodule.prepare_data_per_node is True
    assert datamodule.allow_zero_length_dataloader_with_multiple_devices is False
    assert datamodule.trainer is None
    assert datamodule.name is None
    assert datamodule.state_dict() == {}


def test_arguments_of_a_subclass_may_be_passed_on():
    class Passing(LightningDataModule):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    assert Passing(3, batch_size=2).trainer is None


def test_loader_that_is_not_implemented_is_an_error():
    with pytest.raises(MisconfigurationException, match="train_dataloader"):
        LightningDataModule().train_dataloader()


# ---- from datasets


def test_datasets_become_loaders_and_only_training_is_shuffled():
    datamodule = LightningDataModule.from_datasets(Numbers(), Numbers(), batch_size=3, num_workers=1)
    train, val = datamodule.train_dataloader(), datamodule.val_dataloader()

    assert isinstance(train.sampler, RandomSampler)
    assert isinstance(val.sampler, SequentialSampler)
    assert (train.batch_size, train.num_workers) == (val.batch_size, val.num_workers) == (3, 1)
    with pytest.raises(MisconfigurationException):
        datamodule.test_dataloader()


def test_a_stream_is_not_shuffled():
    assert list(LightningDataModule.from_datasets(Stream()).train_dataloader()) == [0, 1, 2]


def test_collections_of_datasets_become_collections_of_loaders():
    datasets: Any = {"a": Numbers(), "b": Stream()}
    datamodule = LightningDataModule.from_datasets(datasets, predict_dataset=[Numbers()])

    assert {name: type(loader) for name, loader in datamodule.train_dataloader().items()} == {
        "a": DataLoader,
        "b": DataLoader,
    }
    assert [len(loader) for loader in datamodule.predict_dataloader()] == [4]


def test_a_subclass_gets_the_arguments_it_has():
    class Sized(LightningDataModule):
        def __init__(self, batch_size, extra=0):
            super().__init__()
            self.got = (batch_size, extra)

    class Open(LightningDataModule):
        def __init__(self, **kwargs):
            super().__init__()
            self.got = kwargs

    assert Sized.from_datasets(Numbers(), batch_size=5, extra=7).got == (5, 7)
    assert Open.from_datasets(Numbers(), batch_size=5).got == {"batch_size": 5, "num_workers": 0}


def test_a_datamodule_of_datasets_can_be_pickled():
    datamodule = pickle.loads(pickle.dumps(LightningDataModule.from_datasets(Numbers())))

    assert len(datamodule.train_dataloader()) == 4


# ---- text, copies


def test_text_lists_the_sizes():
    class Loaders(LightningDataModule):
        made_by_setup: Numbers

        def train_dataloader(self):
            return DataLoader(Numbers(), batch_size=3)

        def val_dataloader(self):
            return [DataLoader(Stream()), {"x": DataLoader(Numbers())}]

        def test_dataloader(self):
            return DataLoader(self.made_by_setup)

        def predict_dataloader(self):
            return range(3)

    assert str(Loaders()) == (
        "{Train dataloader: size=4}\n{Validation dataloader: 1. size=NA ; 2. size=4}\n{Test dataloader: None}\n"
        "{Predict dataloader: size=3}"
    )


def test_copies_leave_the_trainer_behind():
    datamodule = Digits()
    trainer: Any = SimpleNamespace(lock=lambda: None)
    datamodule.trainer = trainer

    assert copy.deepcopy(datamodule).trainer is None
    assert pickle.loads(pickle.dumps(datamodule)).trainer is None
    assert datamodule.trainer is not None


# ---- checkpoints


def saved(tmp_path, datamodule):
    path = tmp_path / "data.ckpt"
    content = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "hyper_parameters": {"size": 99}}
    torch.save({**content, **dump_hparams(datamodule), "Digits": datamodule.state_dict()}, path)
    return path


def test_datamodule_comes_back_with_hparams_and_state(tmp_path):
    datamodule = Digits(size=6)
    datamodule.seen = 3
    loaded = Digits.load_from_checkpoint(saved(tmp_path, datamodule), batch_size=9)

    assert loaded.hparams == {"size": 6, "batch_size": 9}
    assert loaded.seen == 3


def test_state_of_another_class_is_not_loaded(tmp_path):
    class Other(Digits):
        pass

    datamodule = Digits()
    datamodule.seen = 3
    assert Other.load_from_checkpoint(saved(tmp_path, datamodule)).seen == 0


def test_loading_on_an_instance_is_refused():
    with pytest.raises(TypeError, match="called on an instance of `Digits`"):
        Digits().load_from_checkpoint("any.ckpt")
