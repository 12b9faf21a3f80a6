"""What is in a checkpoint of a real run, and what comes back from it."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen.callbacks.early_stopping import EarlyStopping
from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.checkpoint.contents import SECTIONS
from fulmen.core.callback import Callback
from fulmen.core.datamodule import LightningDataModule
from fulmen.core.module import LightningModule
from fulmen.demos.boring_classes import BoringModel
from fulmen.plugins.precision import FSDPPrecision, MixedPrecision
from fulmen.trainer.trainer import Trainer
from fulmen.utilities.exceptions import MisconfigurationException

REFERENCE = os.environ.get("FULMEN_REFERENCE_PYTHON")
KEYS = [
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "state_dict",
    "loops",
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "hparams_name",
    "hyper_parameters",
    "datamodule_hparams_name",
    "datamodule_hyper_parameters",
    "Data",
    "fulmen",
]
TRAINING_KEYS = {"callbacks", "optimizer_states", "lr_schedulers"}
log: list[str] = []


class Net(LightningModule):
    def __init__(self, width=4, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.2), torch.nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def on_save_checkpoint(self, checkpoint):
        log.append("module.on_save_checkpoint")

    def on_load_checkpoint(self, checkpoint):
        log.append("module.on_load_checkpoint")

    def state_dict(self, *args, **kwargs):
        log.append("module.state_dict")
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        log.append("module.load_state_dict")
        return super().load_state_dict(*args, **kwargs)


class Data(LightningDataModule):
    def __init__(self, batch_size=2):
        super().__init__()
        self.save_hyperparameters()
        self.seen = 0

    def train_dataloader(self):
        samples = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(samples), batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2)

    predict_dataloader = test_dataloader = val_dataloader

    def state_dict(self):
        log.append("data.state_dict")
        return {"seen": 3}

    def load_state_dict(self, state_dict):
        log.append("data.load_state_dict")
        self.seen = state_dict["seen"]


class Remembers(Callback):
    def __init__(self):
        self.items = [1]

    def state_dict(self):
        log.append("callback.state_dict")
        return {"items": self.items}

    def load_state_dict(self, state_dict):
        log.append("callback.load_state_dict")
        self.items = state_dict["items"]
        self.items.append(2)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        log.append("callback.on_save_checkpoint")

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        log.append("callback.on_load_checkpoint")


def quiet(tmp_path, **changes):
    defaults = {
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "default_root_dir": str(tmp_path),
    }
    return {**defaults, **changes}


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(1)
    trainer = Trainer(callbacks=[Remembers()], **quiet(tmp_path))
    trainer.fit(Net(), datamodule=Data())
    log.clear()
    return trainer


def written(trainer, tmp_path, **kwargs):
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path, **kwargs)
    return path, torch.load(path, weights_only=True)


# ---- writing


def test_keys_are_those_of_lightning_and_one_of_ours(trained, tmp_path):
    _, checkpoint = written(trained, tmp_path)

    assert list(checkpoint) == KEYS
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, 5)
    assert checkpoint["hyper_parameters"] == {"width": 4, "lr": 0.1}
    assert checkpoint["datamodule_hyper_parameters"] == {"batch_size": 2}
    assert checkpoint["callbacks"] == {"Remembers": {"items": [1]}}


def test_weights_only_checkpoint_lacks_what_training_needs(trained, tmp_path):
    _, checkpoint = written(trained, tmp_path, weights_only=True)

    assert list(checkpoint) == [key for key in KEYS if key not in TRAINING_KEYS]
    assert checkpoint["fulmen"] == {"version": 1}


def test_dumping_calls_come_in_the_documented_order(trained, tmp_path):
    trained.save_checkpoint(tmp_path / "a.ckpt")

    assert log == [
        "module.state_dict",
        "callback.state_dict",
        "data.state_dict",
        "callback.on_save_checkpoint",
        "module.on_save_checkpoint",
    ]
    log.clear()
    trained.save_checkpoint(tmp_path / "b.ckpt", weights_only=True)
    assert log == ["module.state_dict", "data.state_dict", "module.on_save_checkpoint"]


def test_loops_have_the_layout_of_lightning(trained, tmp_path):
    _, checkpoint = written(trained, tmp_path)
    all_of = dict.fromkeys(("ready", "completed", "started", "processed"))
    five, two, one = dict.fromkeys(all_of, 5), dict.fromkeys(all_of, 2), dict.fromkeys(all_of, 1)

    fit_loop = checkpoint["loops"]["fit_loop"]
    assert fit_loop["epoch_progress"] == {"total": one, "current": one}
    assert fit_loop["epoch_loop.batch_progress"] == {"total": five, "current": five, "is_last_batch": True}
    assert fit_loop["epoch_loop.val_loop.batch_progress"] == {"total": two, "current": two, "is_last_batch": True}
    assert fit_loop["epoch_loop.state_dict"] == {"_batches_that_stepped": 5}
    assert fit_loop["epoch_loop.scheduler_progress"]["total"] == {"ready": 1, "completed": 1}
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    assert steps["step"]["total"] == {"ready": 5, "completed": 5}
    assert steps["zero_grad"]["total"] == {"ready": 5, "completed": 5, "started": 5}
    assert set(checkpoint["loops"]) == {"fit_loop", "validate_loop", "test_loop", "predict_loop"}


def test_every_section_can_be_given_back_or_says_why_not(trained):
    kept_otherwise = [section for section in SECTIONS if section.restore is None]

    assert [sorted(section.dump(trained)) for section in kept_otherwise] == [
        ["epoch", "global_step", "pytorch-lightning_version"],
        ["datamodule_hparams_name", "datamodule_hyper_parameters", "hparams_name", "hyper_parameters"],
        ["fulmen"],
    ]


def test_an_epoch_end_checkpoint_has_the_number_of_the_epoch_that_ends(tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    Trainer(callbacks=[saver], **quiet(tmp_path, max_epochs=2, enable_checkpointing=True)).fit(Net(), datamodule=Data())

    for epoch in (0, 1):
        checkpoint = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        assert checkpoint["epoch"] == epoch
        assert (progress["completed"], progress["processed"]) == (epoch, epoch + 1)


# ---- reading


@pytest.mark.parametrize("fn", ["fit", "validate", "predict"])
def test_restoring_calls_come_in_the_documented_order(trained, tmp_path, fn):
    path, _ = written(trained, tmp_path)
    log.clear()
    getattr(Trainer(callbacks=[Remembers()], **quiet(tmp_path)), fn)(Net(), datamodule=Data(), ckpt_path=path)

    assert [call for call in log if "load" in call] == [
        "module.on_load_checkpoint",
        "module.load_state_dict",
        "data.load_state_dict",
        "callback.on_load_checkpoint",
        "callback.load_state_dict",
    ]


def test_callbacks_get_their_own_copy_of_the_state(trained, tmp_path):
    path, _ = written(trained, tmp_path)
    callback = Remembers()
    seen = []

    class Looks(Callback):
        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            seen.append(checkpoint)

    Trainer(callbacks=[callback, Looks()], **quiet(tmp_path)).validate(
        Net(), datamodule=Data(), ckpt_path=path, verbose=False
    )

    assert callback.items == [1, 2]
    assert seen[0]["callbacks"]["Remembers"] == {"items": [1]}


def test_states_without_a_callback_warn(trained, tmp_path):
    path, _ = written(trained, tmp_path)

    with pytest.warns(UserWarning, match=r"states of callbacks that this Trainer does not have: \['Remembers'\]"):
        Trainer(**quiet(tmp_path)).validate(Net(), datamodule=Data(), ckpt_path=path, verbose=False)


def test_fit_goes_on_where_the_file_ends(trained, tmp_path):
    path, _ = written(trained, tmp_path)
    trainer = Trainer(callbacks=[Remembers()], **quiet(tmp_path, max_epochs=3))
    trainer.fit(Net(), datamodule=Data(), ckpt_path=path)

    assert (trainer.current_epoch, trainer.global_step) == (3, 15)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0125)


def test_weights_only_file_cannot_be_trained_on(trained, tmp_path):
    path, _ = written(trained, tmp_path, weights_only=True)

    with pytest.raises(KeyError, match=r"no optimizer state.*weights only"):
        Trainer(**quiet(tmp_path, max_epochs=2)).fit(Net(), datamodule=Data(), ckpt_path=path)


def test_weights_only_file_can_be_validated(trained, tmp_path):
    path, _ = written(trained, tmp_path, weights_only=True)
    trainer = Trainer(callbacks=[Remembers()], **quiet(tmp_path))
    trainer.validate(Net(), datamodule=Data(), ckpt_path=path, verbose=False)

    assert "callback.on_load_checkpoint" not in log


def test_more_epochs_than_allowed_are_refused(trained, tmp_path):
    path = tmp_path / "two.ckpt"
    trained.fit_loop.max_epochs = 2
    trained.fit(trained.lightning_module, datamodule=Data())
    trained.save_checkpoint(path)

    with pytest.raises(MisconfigurationException, match=r"current_epoch=2, but `Trainer\(max_epochs=1\)`"):
        Trainer(callbacks=[Remembers()], **quiet(tmp_path)).fit(Net(), datamodule=Data(), ckpt_path=path)


def test_a_different_number_of_optimizers_warns(trained, tmp_path):
    path, checkpoint = written(trained, tmp_path)
    checkpoint["lr_schedulers"].append(checkpoint["lr_schedulers"][0])
    torch.save(checkpoint, path)

    with pytest.warns(UserWarning, match="has 2 learning rate scheduler state"):
        Trainer(callbacks=[Remembers()], **quiet(tmp_path, max_epochs=2)).fit(Net(), datamodule=Data(), ckpt_path=path)


def test_random_numbers_go_on_as_if_nothing_had_happened(tmp_path):
    """Dropout and shuffling make the weights depend on every generator and on the order of the data."""
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    torch.manual_seed(3)
    whole = Net()
    Trainer(callbacks=[saver], **quiet(tmp_path, max_epochs=3, enable_checkpointing=True)).fit(whole, datamodule=Data())
    for step in (3, 5, 6, 10):
        torch.manual_seed(99)
        resumed = Net()
        trainer = Trainer(
            callbacks=[ModelCheckpoint(dirpath=tmp_path, save_top_k=0, every_n_train_steps=1)],
            **quiet(tmp_path, max_epochs=3, enable_checkpointing=True),
        )
        trainer.fit(resumed, datamodule=Data(), ckpt_path=tmp_path / f"step={step}.ckpt")

        assert trainer.global_step == 15
        for name, value in whole.state_dict().items():
            assert value.equal(resumed.state_dict()[name]), (step, name)


# ---- both ways with the released Lightning

_NET_OF_REFERENCE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from torch.utils.data import DataLoader, TensorDataset
import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

class Net(L.LightningModule):
    def __init__(self, width=4, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.0), torch.nn.Linear(width, 1))
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).pow(2).mean()
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

class Data(L.LightningDataModule):
    def __init__(self, batch_size=2):
        super().__init__()
        self.save_hyperparameters()
    def train_dataloader(self):
        samples = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(samples), batch_size=self.hparams.batch_size)
    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2)

def trainer(folder, max_epochs, **kwargs):
    callbacks = [EarlyStopping("val_loss", patience=9), ModelCheckpoint(folder, "{step}", save_top_k=-1, **kwargs)]
    return L.Trainer(max_epochs=max_epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
                     accelerator="cpu", default_root_dir=folder, callbacks=callbacks)

folder = sys.argv[1]
"""


def reference(code, *args):
    script = _NET_OF_REFERENCE + textwrap.dedent(code)
    done = subprocess.run(
        [str(REFERENCE), "-c", script, *map(str, args)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


class Same(Net):
    """The module of the reference run: no dropout, so that the random state does not matter."""

    def __init__(self, width=4, lr=0.1):
        super().__init__(width, lr)
        self.layer[1] = torch.nn.Dropout(0.0)


class Ordered(Data):
    def train_dataloader(self):
        samples = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(samples), batch_size=self.hparams.batch_size)


def trainer_like_reference(tmp_path, max_epochs, **kwargs):
    callbacks: list[Callback] = [
        EarlyStopping("val_loss", patience=9),
        ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **kwargs),
    ]
    return Trainer(callbacks=callbacks, **quiet(tmp_path, max_epochs=max_epochs, enable_checkpointing=True))


def numbers(module):
    return torch.cat([value.flatten() for value in module.state_dict().values()]).tolist()


needs_reference = pytest.mark.skipif(not REFERENCE, reason="FULMEN_REFERENCE_PYTHON names no python with lightning")
_FIT_REFERENCE = """
t = trainer(folder, 3, every_n_train_steps=1)
torch.manual_seed(1)
net = Net()
t.fit(net, datamodule=Data())
print(json.dumps(torch.cat([v.flatten() for v in net.state_dict().values()]).tolist()))
"""
_RESUME_REFERENCE = """
t = trainer(folder, 3, every_n_train_steps=1)
net = Net()
t.fit(net, datamodule=Data(), ckpt_path=sys.argv[2])
weights = torch.cat([v.flatten() for v in net.state_dict().values()]).tolist()
print(json.dumps({"weights": weights, "step": t.global_step, "epoch": t.current_epoch,
                  "patience": t.early_stopping_callback.best_score.item()}))
"""


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory):
    """A run of Lightning with a checkpoint after every step: the folder, and the weights at its end."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, reference(_FIT_REFERENCE, folder)


@needs_reference
@pytest.mark.parametrize("step", [2, 5, 8])
def test_a_file_of_lightning_resumes_here(tmp_path, reference_run, step):
    folder, expected = reference_run
    trainer = trainer_like_reference(tmp_path, 3, every_n_train_steps=1)
    net = Same()
    with pytest.warns(UserWarning, match="The folder of `ModelCheckpoint` changed"):
        trainer.fit(net, datamodule=Ordered(), ckpt_path=folder / f"step={step}.ckpt")

    assert (trainer.global_step, trainer.current_epoch) == (15, 3)
    assert numbers(net) == pytest.approx(expected, abs=1e-6)


@needs_reference
def test_a_module_of_a_lightning_file_loads_here(reference_run):
    folder, expected = reference_run
    net = Same.load_from_checkpoint(folder / "step=15.ckpt")

    assert numbers(net) == pytest.approx(expected, abs=1e-6)
    assert net.hparams == {"width": 4, "lr": 0.1}
    assert Ordered.load_from_checkpoint(folder / "step=15.ckpt").hparams == {"batch_size": 2}


@needs_reference
@pytest.mark.parametrize("every", [{"save_on_train_epoch_end": True}, {"monitor": "val_loss"}])
def test_our_file_resumes_in_lightning(tmp_path, every):
    torch.manual_seed(1)
    whole = Same()
    trainer = trainer_like_reference(tmp_path, 3, **every)
    trainer.fit(whole, datamodule=Ordered())
    result = reference(_RESUME_REFERENCE, tmp_path, tmp_path / "step=10.ckpt")

    assert (result["step"], result["epoch"]) == (15, 3)
    assert result["weights"] == pytest.approx(numbers(whole), abs=1e-6)
    assert result["patience"] == pytest.approx(trainer.early_stopping_callback.best_score.item(), abs=1e-6)


@needs_reference
def test_our_mid_epoch_file_resumes_in_lightning(tmp_path):
    trainer = trainer_like_reference(tmp_path, 3, every_n_train_steps=1)
    trainer.fit(Same(), datamodule=Ordered())
    result = reference(_RESUME_REFERENCE, tmp_path / "there", tmp_path / "step=7.ckpt")

    assert (result["step"], result["epoch"]) == (15, 3)


@needs_reference
def test_a_module_of_our_file_loads_in_lightning(tmp_path):
    torch.manual_seed(1)
    whole = Same()
    trainer = trainer_like_reference(tmp_path, 1, save_on_train_epoch_end=True)
    trainer.fit(whole, datamodule=Ordered())
    result = reference(
        """
        net = Net.load_from_checkpoint(sys.argv[2])
        data = Data.load_from_checkpoint(sys.argv[2])
        weights = torch.cat([v.flatten() for v in net.state_dict().values()]).tolist()
        print(json.dumps([weights, dict(net.hparams), dict(data.hparams)]))
        """,
        tmp_path,
        tmp_path / "step=5.ckpt",
    )

    assert result[0] == pytest.approx(numbers(whole), abs=1e-6)
    assert result[1:] == [{"width": 4, "lr": 0.1}, {"batch_size": 2}]


@pytest.mark.parametrize("names", [("MixedPrecision", "FSDPPrecision"), ("FSDPPrecision", "MixedPrecision")])
def test_the_scale_of_the_loss_goes_from_sharded_to_whole_weights_and_back(names, tmp_path):
    def plugin(name, scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return (
            FSDPPrecision("16-mixed", scaler) if name == "FSDPPrecision" else MixedPrecision("16-mixed", "cpu", scaler)
        )

    def train(precision, ckpt_path=None):
        trainer = Trainer(
            accelerator="cpu", plugins=precision, max_epochs=1 if ckpt_path is None else 2, limit_train_batches=2,
            limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(BoringModel(), ckpt_path=ckpt_path)
        return trainer

    first = train(plugin(names[0], 8.0))
    first.save_checkpoint(tmp_path / "first.ckpt")
    assert names[0] in torch.load(tmp_path / "first.ckpt", weights_only=True)

    second = plugin(names[1], 2.0)
    train(second, tmp_path / "first.ckpt")

    assert second.scaler.get_scale() == 8.0
    assert second.scaler._growth_tracker.item() == 4
