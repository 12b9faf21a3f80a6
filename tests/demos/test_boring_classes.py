from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fulmen import LightningDataModule, LightningModule, Trainer
from fulmen.demos.boring_classes import (
    BoringDataModule,
    BoringDataModuleNoLen,
    BoringModel,
    DemoModel,
    IterableBoringDataModule,
    ManualOptimBoringModel,
    Net,
    RandomDataset,
    RandomDictDataset,
    RandomIterableDataset,
    RandomIterableDatasetWithLen,
)
from tests.support import quiet


def test_boring_model_goes_through_all_stages(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, fast_dev_run=2))
    model = BoringModel()
    trainer.fit(model)
    predictions = trainer.predict(model)

    assert trainer.global_step == 2
    assert trainer.validate(model) == trainer.test(model) == [{}]
    assert predictions is not None
    assert torch.cat(predictions).shape == (2, 2)  # type: ignore[arg-type]  # one loader, so a flat list


def test_boring_model_measures_the_distance_to_ones() -> None:
    model = BoringModel()

    assert model.loss(torch.ones(3, 2)).item() == 0.0
    assert model.loss(torch.zeros(3, 2)).item() == 1.0
    assert model.loss(torch.ones(3, 2), torch.ones(3, 2) * 3).item() == 4.0


def test_manual_model_steps_by_itself(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, limit_train_batches=3, limit_val_batches=1))
    trainer.fit(ManualOptimBoringModel())

    assert trainer.global_step == 3


@pytest.mark.parametrize("datamodule", [BoringDataModule, BoringDataModuleNoLen])
def test_datamodules_feed_all_stages(datamodule: type[LightningDataModule], tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, fast_dev_run=True))
    model, data = BoringModel(), datamodule()
    trainer.fit(model, datamodule=data)
    trainer.validate(model, datamodule=data)
    trainer.test(model, datamodule=data)
    predictions = trainer.predict(model, datamodule=data)

    assert predictions is not None
    assert len(predictions) == 1


def test_datamodule_of_two_loaders_gives_both() -> None:
    data = IterableBoringDataModule()
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]

    assert [[type(loader.dataset).__name__ for loader in pair] for pair in loaders] == [
        ["RandomDataset", "RandomIterableDataset"]
    ] * 4


def test_parts_of_the_datamodule_do_not_overlap() -> None:
    data = BoringDataModule()
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    parts = (data.random_train, data.random_val, data.random_test, data.random_predict)

    assert [index for part in parts for index in part.indices] == list(range(256))


def test_demo_model_trains(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, max_steps=2))
    model: LightningModule = DemoModel(out_dim=3)
    trainer.fit(model, train_dataloaders=torch.utils.data.DataLoader(RandomDataset(32, 4)))

    assert trainer.global_step == 2


def test_net_answers_log_probabilities() -> None:
    output = Net().eval()(torch.randn(2, 1, 28, 28))

    torch.testing.assert_close(output.exp().sum(dim=1), torch.ones(2))


def test_datasets_have_what_their_names_say() -> None:
    item = RandomDictDataset(4, 3)[0]

    torch.testing.assert_close(item["b"], item["a"] + 2)
    assert [tuple(vector.shape) for vector in RandomIterableDataset(5, 2)] == [(5,), (5,)]
    assert len(RandomIterableDatasetWithLen(5, 2)) == 2
    assert len(RandomDataset(5, 7)) == 7
