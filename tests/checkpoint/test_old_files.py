"""Files that earlier versions of Lightning wrote after two of four epochs go on here as they did there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from tests.support import quiet

FILES = sorted(Path(__file__).with_name("of_lightning").glob("*.ckpt"))


class Net(LightningModule):
    def __init__(self, width=4):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, width)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def fit(folder, ckpt_path=None):
    torch.manual_seed(1)
    samples = TensorDataset(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
    callbacks = [
        ModelCheckpoint(folder, "{step}", save_top_k=-1, monitor="val_loss"),
        EarlyStopping("val_loss", patience=9),
    ]
    trainer = Trainer(**quiet(folder, max_epochs=4, callbacks=callbacks, enable_checkpointing=True))
    net = Net()
    trainer.fit(net, DataLoader(samples, 2), DataLoader(samples, 5), ckpt_path=ckpt_path)
    return trainer, net


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.filterwarnings("ignore:The folder of `ModelCheckpoint` changed")
def test_a_file_of_an_earlier_version_goes_on_to_the_same_end(file, tmp_path):
    whole, expected = fit(tmp_path / "whole")
    path = Path(shutil.copy(file, tmp_path))
    trainer, net = fit(tmp_path / "resumed", path)

    assert (trainer.global_step, trainer.current_epoch) == (whole.global_step, whole.current_epoch) == (20, 4)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value)
    early, best = trainer.early_stopping_callback, whole.early_stopping_callback
    assert early.wait_count == best.wait_count
    torch.testing.assert_close(early.best_score, best.best_score)


def test_modules_of_earlier_versions_load(tmp_path):
    assert [file.stem for file in FILES] == ["1.6.5", "1.9.5", "2.0.9", "2.3.3"]
    assert [Net.load_from_checkpoint(file).hparams for file in FILES] == [{"width": 4}] * 4
