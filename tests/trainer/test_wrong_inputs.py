"""What a careless user gets: the right type of error, with the argument or hook, the value, and the way out.

Each table has one line per mistake: its name, what is done, what comes, and words that the message must contain.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningDataModule, LightningModule, Trainer
from fulmen.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from fulmen.loggers import CSVLogger
from fulmen.utilities.exceptions import DamagedFileError, MisconfigurationException
from tests.support import quiet

BATCHES = 4
NaN = float("nan")
Wrong = MisconfigurationException


# ---- the model, to be spoilt
class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def loss(self, batch: Any) -> torch.Tensor:
        return cast(torch.Tensor, self.layer(batch[0]).square().mean())


class Good(Net):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


def module(base: type[LightningModule] = Good, /, **methods: Any) -> Any:
    """A module with some methods or attributes replaced."""
    return type("Model", (base,), methods)()


def by_hand(self: Any, batch: Any, batch_idx: int) -> None:
    """A training step that optimizes by hand."""
    optimizer = self.optimizers()
    optimizer.zero_grad()
    self.manual_backward(self.loss(batch))
    optimizer.step()


def optimizer(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1)


def scheduled(make: Callable[[Any], Any], /, **entries: Any) -> Callable[[Any], dict[str, Any]]:
    """A `configure_optimizers` that returns a dict with a scheduler and other entries of its dict."""

    def configure_optimizers(self: Any) -> dict[str, Any]:
        chosen = optimizer(self)
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": make(chosen), **entries}}

    return configure_optimizers


def with_scheduler(self: Any) -> tuple[SGD, StepLR]:
    chosen = optimizer(self)
    return chosen, StepLR(chosen, 1)


def logs(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    """A hook that calls `self.log` with these arguments."""
    return lambda self, *_: self.log(*args, **kwargs)


def log_twice(self: Any, batch: Any, batch_idx: int) -> None:
    self.log("a", 1.0)
    self.log("a", 2.0, prog_bar=True)


def wider(self: Any) -> None:
    Net.__init__(self)
    self.layer = nn.Linear(3, 1)


def data(batches: int = BATCHES) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(2 * batches, 2)), batch_size=2)


def endless() -> Iterator[list[torch.Tensor]]:
    while True:
        yield [torch.ones(2, 2)]


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return data()


class Exploding(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        raise OverflowError(f"sample {index} is broken")


@dataclass(frozen=True)
class Place:
    """Where a mistake is made: a folder, and Trainers that are quiet and work in it."""

    folder: Path

    def trainer(self, **arguments: Any) -> Trainer:
        return Trainer(**quiet(self.folder, **arguments))

    def fit(
        self, model: Any, train: Any = None, val: Any = None, *, ckpt_path: Any = None, **arguments: Any
    ) -> Trainer:
        trainer = self.trainer(**arguments)
        trainer.fit(model, data() if train is None else train, val, ckpt_path=ckpt_path)
        return trainer

    def file(self, content: Any) -> Path:
        path = self.folder / "model.ckpt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return path

    def subfolder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def checkpoint(self, model: Any = None, **arguments: Any) -> Path:
        trainer = self.fit(model or Good(), **arguments)
        trainer.save_checkpoint(self.folder / "good.ckpt")
        return self.folder / "good.ckpt"


@dataclass(frozen=True)
class Mistake:
    name: str
    error: type[BaseException]
    words: tuple[str, ...]
    do: Callable[[Place], Any]

    def __str__(self) -> str:
        return self.name


# ---- Trainer(...): the arguments, what comes, words of the message
ARGUMENTS: list[tuple[dict[str, Any], type[BaseException], tuple[str, ...]]] = [
    ({"max_epochs": -2}, Wrong, ("Trainer(max_epochs=-2)", "at least -1", "without an end")),
    ({"max_epochs": "3"}, Wrong, ("Trainer(max_epochs='3')", "must be an int")),
    ({"max_epochs": 2.5}, Wrong, ("Trainer(max_epochs=2.5)", "must be an int")),
    ({"max_steps": -5}, Wrong, ("Trainer(max_steps=-5)", "-1 is no bound")),
    ({"max_steps": None}, Wrong, ("Trainer(max_steps=None)", "-1 is no bound")),
    ({"min_epochs": -1}, Wrong, ("Trainer(min_epochs=-1)", "at least 0")),
    ({"min_epochs": 5, "max_epochs": 2}, UserWarning, ("min_epochs=5", "max_epochs=2")),
    ({"min_steps": 5, "max_steps": 2}, UserWarning, ("min_steps=5", "max_steps=2")),
    ({"max_time": "1h"}, Wrong, ("Trainer(max_time=...)", "'1h'", "DD:HH:MM:SS", "timedelta")),
    ({"max_time": 60}, Wrong, ("Trainer(max_time=...)", "60", "DD:HH:MM:SS")),
    ({"max_time": {"hour": 1}}, Wrong, ("Trainer(max_time=...)", "{'hour': 1}", "'hours'")),
    ({"max_time": timedelta(seconds=-1)}, Wrong, ("Trainer(max_time=", "negative")),
    ({"limit_train_batches": 1.2}, Wrong, ("limit_train_batches", "1.2", "limit_train_batches=10")),
    ({"limit_val_batches": -1}, Wrong, ("limit_val_batches", "-1", "at least 0")),
    ({"limit_test_batches": "all"}, TypeError, ("Trainer(limit_test_batches='all')", "fraction")),
    ({"limit_predict_batches": NaN}, Wrong, ("limit_predict_batches", "nan")),
    ({"overfit_batches": -1}, Wrong, ("overfit_batches", "-1")),
    ({"val_check_interval": 0}, Wrong, ("Trainer(val_check_interval=0)", "limit_val_batches=0")),
    ({"val_check_interval": 1.5}, Wrong, ("Trainer(val_check_interval=1.5)", "(0, 1]")),
    ({"val_check_interval": "1h"}, Wrong, ("Trainer(val_check_interval=...)", "'1h'", "DD:HH:MM:SS")),
    ({"val_check_interval": {"hour": 1}}, Wrong, ("Trainer(val_check_interval=...)", "{'hour': 1}", "'hours'")),
    (
        {"val_check_interval": 0.5, "check_val_every_n_epoch": None},
        Wrong,
        ("val_check_interval=0.5", "check_val_every_n_epoch=None", "int"),
    ),
    ({"check_val_every_n_epoch": 0}, Wrong, ("Trainer(check_val_every_n_epoch=0)", "at least 1", "None")),
    ({"num_sanity_val_steps": -5}, Wrong, ("Trainer(num_sanity_val_steps=-5)", "-1 runs all")),
    ({"log_every_n_steps": -1}, Wrong, ("Trainer(log_every_n_steps=-1)", "0 writes no")),
    ({"reload_dataloaders_every_n_epochs": -1}, Wrong, ("reload_dataloaders_every_n_epochs=-1", "0 keeps")),
    ({"fast_dev_run": -1}, Wrong, ("Trainer(fast_dev_run=-1)", "number of batches")),
    ({"fast_dev_run": "yes"}, Wrong, ("Trainer(fast_dev_run='yes')", "True")),
    ({"accumulate_grad_batches": 0}, Wrong, ("Trainer(accumulate_grad_batches=0)", "at least 1")),
    ({"accumulate_grad_batches": {0: 2}}, Wrong, ("accumulate_grad_batches={0: 2}", "GradientAccumulationScheduler")),
    ({"gradient_clip_val": "x"}, TypeError, ("Trainer(gradient_clip_val='x')", "a number", "None")),
    ({"gradient_clip_val": NaN}, Wrong, ("Trainer(gradient_clip_val=nan)",)),
    ({"gradient_clip_algorithm": "l2"}, Wrong, ("gradient_clip_algorithm='l2'", "'norm'", "'value'")),
    ({"precision": "17"}, ValueError, ("precision='17'", "'bf16-mixed'")),
    ({"accelerator": "gpuu"}, ValueError, ("accelerator='gpuu'", "'gpu'", "'cpu'")),
    ({"devices": 0}, Wrong, ("devices=0", "'auto'")),
    ({"devices": "a"}, TypeError, ("devices='a'", "int")),
    ({"devices": []}, Wrong, ("devices=[]", "'auto'")),
    ({"num_nodes": 0}, ValueError, ("num_nodes=0", "1 or more")),
    ({"strategy": "ddpp"}, ValueError, ("strategy='ddpp'", "'auto'")),
    ({"deterministic": "warning"}, ValueError, ("deterministic='warning'", "'warn'")),
    ({"plugins": [5]}, Wrong, ("plugins", "Precision")),
    ({"profiler": "x"}, Wrong, ("Trainer(profiler='x')", "'simple'")),
    ({"profiler": "xla"}, ModuleNotFoundError, ("XLAProfiler", "fulmen[xla]")),
    ({"logger": object()}, TypeError, ("Trainer(logger=", "object", "fulmen.loggers")),
    ({"logger": "csv"}, TypeError, ("Trainer(logger='csv')", "fulmen.loggers")),
    ({"logger": CSVLogger}, TypeError, ("Trainer(logger=", "CSVLogger(")),
    ({"callbacks": "early"}, TypeError, ("Trainer(callbacks=", "'early'", "Callback")),
    ({"callbacks": [EarlyStopping]}, TypeError, ("Trainer(callbacks=", "class", "EarlyStopping(")),
    ({"callbacks": [TQDMProgressBar(), RichProgressBar()], "enable_progress_bar": True}, Wrong, ("TQDM", "Keep one")),
    ({"callbacks": [Timer("00:00:00:01"), Timer("00:00:00:02")]}, RuntimeError, ("Timer", "state_key")),
    ({"callbacks": ModelCheckpoint()}, Wrong, ("enable_checkpointing=False", "`ModelCheckpoint`", "Remove")),
    ({"callbacks": TQDMProgressBar()}, Wrong, ("enable_progress_bar=False", "`TQDMProgressBar`", "Remove")),
    ({"callbacks": ModelSummary()}, Wrong, ("enable_model_summary=False", "`ModelSummary`", "Remove")),
    ({"barebones": True, "profiler": "simple"}, ValueError, ("barebones=True", "profiler='simple'", "Leave")),
    ({"barebones": True, "logger": True}, ValueError, ("barebones=True", "logger=True", "Leave")),
    ({"barebones": True, "callbacks": ModelCheckpoint()}, Wrong, ("barebones=True", "`ModelCheckpoint`", "Remove")),
    ({"benchmark": True, "deterministic": True}, UserWarning, ("deterministic", "benchmark=False")),
    ({"default_root_dir": 5}, TypeError, ("Trainer(default_root_dir=5)", "path")),
    ({"detect_anomaly": "false"}, TypeError, ("Trainer(detect_anomaly='false')", "True or False")),
    ({"enable_checkpointing": "no"}, TypeError, ("Trainer(enable_checkpointing='no')", "True, False or None")),
    ({"max_epoch": 3}, TypeError, ("unexpected keyword argument 'max_epoch'", "max_epochs")),
    ({"gpus": 1}, TypeError, ("unexpected keyword argument 'gpus'", "accelerator='gpu', devices=")),
    ({"resume_from_checkpoint": "a.ckpt"}, TypeError, ("'resume_from_checkpoint'", "fit(ckpt_path=")),
]


def _label(row: Any) -> str:
    text = ",".join(f"{name}={getattr(value, '__name__', value)!r:.40}" for name, value in row[0].items())
    return re.sub(r" at 0x\w+", "", text)  # the same in every process


@pytest.mark.parametrize(("arguments", "error", "words"), ARGUMENTS, ids=map(_label, ARGUMENTS))
def test_wrong_argument_is_refused_at_construction(
    arguments: dict[str, Any], error: type[BaseException], words: tuple[str, ...], tmp_path: Path
) -> None:
    message = message_of(error, lambda: Trainer(**quiet(tmp_path, **arguments)))

    assert [word for word in words if word not in message] == []
    assert list(tmp_path.iterdir()) == []


# ---- fit, validate, test, predict
MISTAKES = [
    # ---- the call
    Mistake(
        "fit without training_step",
        Wrong,
        ("Model.training_step", "def training_step"),
        lambda at: at.fit(module(Net, configure_optimizers=Good.configure_optimizers)),
    ),
    Mistake(
        "fit without configure_optimizers",
        Wrong,
        ("Model.configure_optimizers", "def configure_optimizers"),
        lambda at: at.fit(module(Net, training_step=Good.training_step)),
    ),
    Mistake(
        "fit without data",
        Wrong,
        ("Trainer.fit()", "`train_dataloaders`", "Good.train_dataloader"),
        lambda at: at.trainer().fit(Good()),
    ),
    Mistake(
        "validate without validation_step",
        Wrong,
        ("Trainer.validate()", "Net.validation_step", "def validation_step"),
        lambda at: at.trainer().validate(Net(), data()),
    ),
    Mistake(
        "test without data",
        Wrong,
        ("Trainer.test()", "`dataloaders`", "Model.test_dataloader"),
        lambda at: at.trainer().test(module(test_step=Good.validation_step)),
    ),
    Mistake(
        "predict without predict_step and forward",
        Wrong,
        ("Trainer.predict()", "Good.predict_step", "Good.forward"),
        lambda at: at.trainer().predict(Good(), data()),
    ),
    Mistake(
        "a plain nn.Module",
        TypeError,
        ("Trainer.fit(model)", "Linear", "Subclass `LightningModule`"),
        lambda at: at.fit(nn.Linear(2, 1)),
    ),
    Mistake(
        "the class instead of a module",
        TypeError,
        ("Trainer.fit(model)", "class `Good`", "Good("),
        lambda at: at.fit(Good),
    ),
    Mistake(
        "model and loader swapped",
        TypeError,
        ("Trainer.fit(model)", "DataLoader", "first"),
        lambda at: at.trainer().fit(data(), Good()),  # type: ignore[arg-type]
    ),
    Mistake(
        "validate before any run, without a model",
        TypeError,
        ("Trainer.validate()", "trainer.validate(model)"),
        lambda at: at.trainer().validate(dataloaders=data()),
    ),
    Mistake(
        "loaders and datamodule",
        Wrong,
        ("`train_dataloaders`", "`datamodule`", "Leave out one"),
        lambda at: at.trainer().fit(Good(), data(), datamodule=Data()),
    ),
    Mistake(
        "two datamodules",
        Wrong,
        ("Two datamodules", "Pass one"),
        lambda at: at.trainer().fit(Good(), Data(), datamodule=Data()),
    ),
    Mistake(
        "the class instead of a datamodule",
        TypeError,
        ("datamodule", "class `Data`", "Data("),
        lambda at: at.trainer().fit(Good(), datamodule=Data),  # type: ignore[arg-type]
    ),
    Mistake(
        "a loader as datamodule",
        TypeError,
        ("Trainer.fit(datamodule=...)", "DataLoader", "LightningDataModule"),
        lambda at: at.trainer().fit(Good(), datamodule=data()),  # type: ignore[arg-type]
    ),
    Mistake(
        "a train_dataloader that returns nothing",
        TypeError,
        ("Model.train_dataloader()", "None", "DataLoader"),
        lambda at: at.trainer().fit(module(train_dataloader=lambda self: None)),
    ),
    Mistake(
        "no super().__init__()",
        RuntimeError,
        ("Model.__init__", "super().__init__()"),
        lambda at: at.fit(module(__init__=lambda self: None)),
    ),
    Mistake(
        "a loader that cannot be iterated",
        TypeError,
        ("`Trainer.fit(train_dataloaders=...)`", "5", "DataLoader"),
        lambda at: at.fit(Good(), 5),
    ),
    Mistake(
        "validation_step without data",
        UserWarning,
        ("Good", "validation_step", "validation is skipped"),
        lambda at: at.fit(Good()),
    ),
    Mistake(
        "validation data without a step",
        UserWarning,
        ("Model", "validation_step", "validation is skipped"),
        lambda at: at.fit(
            module(Net, training_step=Good.training_step, configure_optimizers=Good.configure_optimizers), val=data()
        ),
    ),
    Mistake(
        "an empty loader",
        UserWarning,
        ("train_dataloader", "zero"),
        lambda at: at.fit(Good(), DataLoader([])),  # type: ignore[arg-type]
    ),
    # ---- settings that only the data show to be wrong
    Mistake(
        "val_check_interval above the epoch",
        ValueError,
        ("val_check_interval=9", "4 training batches", "None"),
        lambda at: at.fit(Good(), val=data(), val_check_interval=9),
    ),
    Mistake(
        "a fraction of too few batches",
        Wrong,
        ("limit_train_batches", "0.1", "limit_train_batches=0.25"),
        lambda at: at.fit(Good(), limit_train_batches=0.1),
    ),
    Mistake(
        "a fraction of a loader without length",
        Wrong,
        ("limit_train_batches=0.5", "no length", "int"),
        lambda at: at.fit(Good(), endless(), limit_train_batches=0.5),
    ),
    Mistake(
        "a fractional interval of a loader without length",
        Wrong,
        ("val_check_interval=0.5", "no length", "int"),
        lambda at: at.fit(Good(), endless(), data(), val_check_interval=0.5, max_steps=2),
    ),
    Mistake(
        "several validation loaders without dataloader_idx",
        RuntimeError,
        ("2 dataloaders", "`validation_step`", "def validation_step(self, batch, batch_idx, dataloader_idx=0)"),
        lambda at: at.fit(Good(), val=[data(), data()], num_sanity_val_steps=0),
    ),
    Mistake(
        "several validation loaders and a hook without dataloader_idx",
        RuntimeError,
        ("2 dataloaders", "`on_validation_batch_end`", "def on_validation_batch_end(self, outputs, batch, batch_idx"),
        lambda at: at.fit(
            module(
                validation_step=lambda self, batch, batch_idx, dataloader_idx: None,
                on_validation_batch_end=lambda self, outputs, batch, batch_idx: None,
            ),
            val=[data(), data()],
        ),
    ),
    Mistake(
        "several prediction loaders without dataloader_idx",
        RuntimeError,
        ("2 dataloaders", "`predict_step`"),
        lambda at: at.trainer().predict(module(predict_step=lambda self, batch, batch_idx: 0), [data(), data()]),
    ),
    Mistake(
        "one loader and a step that demands dataloader_idx",
        RuntimeError,
        ("dataloader_idx", "only one", "default"),
        lambda at: at.fit(module(validation_step=lambda self, batch, batch_idx, dataloader_idx: None), val=data()),
    ),
    Mistake(
        "a worker that raises",
        OverflowError,
        ("sample 0 is broken", "worker"),
        lambda at: at.fit(Good(), DataLoader(Exploding(), num_workers=1)),
    ),
    # ---- training_step
    Mistake(
        "training_step returns a str",
        Wrong,
        ("`training_step`", "str", "tensor", "'loss'", "None"),
        lambda at: at.fit(module(training_step=lambda self, batch, batch_idx: "0.5")),
    ),
    Mistake(
        "training_step returns a float",
        Wrong,
        ("`training_step`", "float", "tensor", ".item()"),
        lambda at: at.fit(module(training_step=lambda self, batch, batch_idx: self.loss(batch).item())),
    ),
    Mistake(
        "training_step returns a dict without loss",
        Wrong,
        ("`training_step`", "'loss'", "'los'"),
        lambda at: at.fit(module(training_step=lambda self, batch, batch_idx: {"los": self.loss(batch)})),
    ),
    Mistake(
        "training_step returns a vector",
        Wrong,
        ("`training_step`", "(2, 1)", "loss.mean()"),
        lambda at: at.fit(module(training_step=lambda self, batch, batch_idx: self.layer(batch[0]))),
    ),
    Mistake(
        "training_step returns a loss without gradient",
        Wrong,
        ("`training_step`", "requires_grad", ".detach()"),
        lambda at: at.fit(module(training_step=lambda self, batch, batch_idx: self.loss(batch).detach())),
    ),
    Mistake(
        "training_step always returns None",
        UserWarning,
        ("`training_step` returned None", "return loss"),
        lambda at: at.fit(module(training_step=lambda self, batch, batch_idx: None)),
    ),
    Mistake(
        "the loss is NaN",
        RuntimeWarning,
        ("nan", "epoch 0, batch 0", "detect_anomaly=True"),
        lambda at: at.fit(module(training_step=lambda self, batch, batch_idx: self.loss(batch) * NaN)),
    ),
    Mistake(
        "optimizer_step does not call the closure",
        Wrong,
        ("Model.optimizer_step", "optimizer.step(closure=optimizer_closure)"),
        lambda at: at.fit(module(optimizer_step=lambda self, epoch, batch_idx, optimizer, closure: None)),
    ),
    Mistake(
        "manual_backward with automatic optimization",
        Wrong,
        ("manual_backward", "automatic_optimization = False"),
        lambda at: at.fit(module(training_step=by_hand)),
    ),
    Mistake(
        "accumulation with manual optimization",
        Wrong,
        ("accumulate_grad_batches=2", "Model", "by hand"),
        lambda at: at.fit(module(training_step=by_hand, automatic_optimization=False), accumulate_grad_batches=2),
    ),
    Mistake(
        "clipping with manual optimization",
        Wrong,
        ("gradient_clip_val=1.0", "Model", "self.clip_gradients"),
        lambda at: at.fit(module(training_step=by_hand, automatic_optimization=False), gradient_clip_val=1.0),
    ),
    Mistake(
        "training_epoch_end",
        NotImplementedError,
        ("Model.training_epoch_end", "on_train_epoch_end"),
        lambda at: at.fit(module(training_epoch_end=lambda self, outputs: None)),
    ),
    Mistake(
        "validation_epoch_end",
        NotImplementedError,
        ("Model.validation_epoch_end", "on_validation_epoch_end"),
        lambda at: at.fit(module(validation_epoch_end=lambda self, outputs: None)),
    ),
    Mistake(
        "optimizer_idx",
        RuntimeError,
        ("optimizer_idx", "automatic_optimization = False"),
        lambda at: at.fit(module(training_step=lambda self, batch, batch_idx, optimizer_idx: None)),
    ),
]

# ---- configure_optimizers: what it returns, what comes, words of the message
OPTIMIZERS: list[tuple[str, Any, type[BaseException], tuple[str, ...]]] = [
    ("(opt, sched)", with_scheduler, Wrong, ("tuple", "StepLR", "([optimizers], [schedulers])")),
    ("an empty list", lambda self: [], Wrong, ("empty list", "Return an optimizer")),
    ("a str", lambda self: "adam", Wrong, ("'adam'", "Return an optimizer")),
    ("the class of an optimizer", lambda self: SGD, Wrong, ("class `SGD`", "SGD(self.parameters()")),
    ("a dict without optimizer", lambda self: {"opt": optimizer(self)}, Wrong, ("dict", "'opt'", "'optimizer'")),
    (
        "a dict with unknown keys",
        lambda self: {"optimizer": optimizer(self), "scheduler": None},
        UserWarning,
        ("'scheduler'", "'lr_scheduler'"),
    ),
    ("None", lambda self: None, UserWarning, ("None", "automatic_optimization = False")),
    (
        "a foreign scheduler",
        lambda self: ([optimizer(self)], [StepLR(optimizer(self), 1)]),
        Wrong,
        ("StepLR", "belongs to an optimizer"),
    ),
    ("a plateau without monitor", scheduled(ReduceLROnPlateau), Wrong, ("ReduceLROnPlateau", "'monitor'")),
    (
        "a plateau of a metric never logged",
        scheduled(ReduceLROnPlateau, monitor="val_los"),
        Wrong,
        ("'val_los'", "Logged so far", "self.log('val_los'"),
    ),
    (
        "an unknown interval",
        scheduled(lambda o: StepLR(o, 1), interval="batch"),
        Wrong,
        ("'interval': 'batch'", "'step'", "'epoch'"),
    ),
    (
        "a frequency of 0",
        scheduled(lambda o: StepLR(o, 1), frequency=0),
        Wrong,
        ("'frequency': 0", "at least 1"),
    ),
    (
        "a dict without scheduler",
        lambda self: {"optimizer": optimizer(self), "lr_scheduler": {"interval": "step"}},
        Wrong,
        ("'scheduler'", "'interval'"),
    ),
    ("a scheduler that is none", scheduled(lambda o: "cosine"), TypeError, ("'cosine'", "scheduler")),
    (
        "two in automatic mode",
        lambda self: [optimizer(self), optimizer(self)],
        RuntimeError,
        ("2 optimizers", "automatic_optimization = False"),
    ),
]
MISTAKES += [
    Mistake(
        f"configure_optimizers returns {name}",
        error,
        ("`configure_optimizers`", *words),
        partial(lambda make, at: at.fit(module(configure_optimizers=make)), make),
    )
    for name, make, error, words in OPTIMIZERS
]

# ---- self.log: the hook, its call, what comes, words of the message
LOGGED: list[tuple[str, Any, type[BaseException], tuple[str, ...]]] = [
    ("training_step", logs("a", "high"), ValueError, ("self.log('a', 'high')", "str", "a number")),
    ("training_step", logs("a", {"b": 1.0}), ValueError, ("self.log('a'", "dict", "self.log_dict")),
    ("training_step", logs("a", [1.0]), ValueError, ("self.log('a', [1.0])", "list", "a number")),
    ("training_step", logs("a", None), ValueError, ("self.log('a', None)", "NoneType", "a number")),
    ("training_step", logs("a", torch.ones(3)), ValueError, ("self.log('a'", "(3,)", "value.mean()")),
    ("training_step", logs(1.0, "a"), TypeError, ("self.log", "string", "1.0")),
    ("training_step", logs("a", 1.0, on_step=False, on_epoch=False), Wrong, ("on_step=False, on_epoch=False", "True")),
    ("training_step", logs("a", 1.0, on_epoch=True, reduce_fx="median"), Wrong, ("reduce_fx='median'", "'mean'")),
    ("validation_step", logs("a/dataloader_idx_1", 1.0), Wrong, ("/dataloader_idx_", "add_dataloader_idx=False")),
    (
        "on_train_epoch_end",
        logs("a", 1.0, on_step=True),
        Wrong,
        ("on_step=True", "`on_train_epoch_end`", "on_epoch=True"),
    ),
    ("on_fit_start", logs("a", 1.0), Wrong, ("self.log", "`on_fit_start`", "`training_step`")),
    ("on_train_end", logs("a", 1.0), Wrong, ("self.log", "`on_train_end`", "`on_train_epoch_end`")),
    ("configure_optimizers", logs("a", 1.0), Wrong, ("self.log", "`configure_optimizers`", "`training_step`")),
    ("train_dataloader", logs("a", 1.0), Wrong, ("self.log", "`train_dataloader`", "`training_step`")),
    (
        "training_step",
        log_twice,
        Wrong,
        ("self.log('a'", "`training_step`", "prog_bar=True", "was False", "different names"),
    ),
    ("training_step", logs("a", 1.0, logger=True), UserWarning, ("self.log('a', logger=True)", "Trainer(logger=")),
]
MISTAKES += [
    Mistake(
        f"self.log {number} in {hook}",
        error,
        words,
        partial(
            lambda hook, log, at: at.trainer().fit(
                module(**{"train_dataloader": lambda self: data(), "val_dataloader": lambda self: data(), hook: log})
            ),
            hook,
            log,
        ),
    )
    for number, (hook, log, error, words) in enumerate(LOGGED)
]
MISTAKES += [
    Mistake(
        "self.log in predict_step",
        Wrong,
        ("self.log('a'", "`predict_step`"),
        lambda at: at.trainer().predict(module(predict_step=logs("a", 1.0)), data()),
    ),
    Mistake(
        "self.log after fit",
        Wrong,
        ("self.log('a'", "outside of any hook"),
        lambda at: at.fit(Good()).lightning_module.log("a", 1.0),
    ),
    Mistake(
        "self.log without a Trainer",
        UserWarning,
        ("self.log", "Unattached", "no Trainer"),
        lambda at: type("Unattached", (Good,), {})().log("a", 1.0),
    ),
    Mistake(
        "self.trainer without a Trainer",
        RuntimeError,
        ("`Good`", "not attached", "trainer.fit(model)"),
        lambda at: Good().trainer,
    ),
    # ---- a metric that nobody logs
    Mistake(
        "EarlyStopping",
        RuntimeError,
        ("EarlyStopping", "'val_los'", "val_loss"),
        lambda at: at.fit(Good(), val=data(), callbacks=EarlyStopping("val_los")),
    ),
    Mistake(
        "ModelCheckpoint",
        Wrong,
        ("ModelCheckpoint(monitor='val_los')", "val_loss"),
        lambda at: at.fit(Good(), val=data(), callbacks=ModelCheckpoint(monitor="val_los"), enable_checkpointing=True),
    ),
    # ---- resuming
    Mistake(
        "resume from a missing file",
        FileNotFoundError,
        ("absent.ckpt", "Check the path"),
        lambda at: at.fit(Good(), ckpt_path=at.folder / "absent.ckpt"),
    ),
    Mistake(
        "resume from a truncated file",
        DamagedFileError,
        ("model.ckpt", "damaged"),
        lambda at: at.fit(Good(), ckpt_path=at.file(at.checkpoint().read_bytes()[:-400])),
    ),
    Mistake(
        "resume from a text file",
        DamagedFileError,
        ("model.ckpt", "torch.save", "Use another"),
        lambda at: at.fit(Good(), ckpt_path=at.file(b"hello, this is no checkpoint")),
    ),
    Mistake(
        "resume from an empty file",
        DamagedFileError,
        ("model.ckpt", "empty"),
        lambda at: at.fit(Good(), ckpt_path=at.file(b"")),
    ),
    Mistake(
        "resume from a folder",
        IsADirectoryError,
        ("checkpoints",),
        lambda at: at.fit(Good(), ckpt_path=at.subfolder("checkpoints")),
    ),
    Mistake(
        "resume from bare weights",
        KeyError,
        ("'layer.weight'", "model.load_state_dict"),
        lambda at: at.fit(Good(), ckpt_path=at.file(Good().state_dict())),
    ),
    Mistake(
        "resume from a tensor",
        TypeError,
        ("Tensor", "a checkpoint is a dict", "torch.load"),
        lambda at: at.fit(Good(), ckpt_path=at.file(torch.ones(2))),
    ),
    Mistake(
        "resume with other weights",
        RuntimeError,
        ("size mismatch", "layer.weight"),
        lambda at: at.fit(module(__init__=wider), ckpt_path=at.checkpoint()),
    ),
    Mistake(
        "resume with max_epochs in the past",
        Wrong,
        ("max_epochs=1", "2"),
        lambda at: at.fit(Good(), ckpt_path=at.checkpoint(max_epochs=2), max_epochs=1),
    ),
    Mistake(
        "the best of no checkpoints",
        ValueError,
        ('ckpt_path="best"', "ModelCheckpoint"),
        lambda at: at.trainer().validate(Good(), data(), ckpt_path="best"),
    ),
    Mistake(
        "save before any run",
        AttributeError,
        ("Trainer.save_checkpoint", "Call `fit` first"),
        lambda at: at.trainer().save_checkpoint(at.folder / "a.ckpt"),
    ),
    Mistake(
        "save below a file",
        OSError,
        ("model.ckpt",),
        lambda at: at.fit(Good()).save_checkpoint(at.file(b"") / "a.ckpt"),
    ),
    Mistake(
        "default_root_dir below a file",
        OSError,
        ("model.ckpt",),
        lambda at: at.fit(Good(), default_root_dir=at.file(b"") / "logs", logger=True, enable_checkpointing=True),
    ),
]


def message_of(error: type[BaseException], do: Callable[[], Any]) -> str:
    """Do something wrong and return what the error, or the warnings, say."""
    random.seed(0)
    if issubclass(error, Warning):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            do()
        return "\n".join(str(each.message) for each in caught if issubclass(each.category, error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error) as raised:
            do()
    return str(raised.value)


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_mistake_is_explained(mistake: Mistake, tmp_path: Path) -> None:
    message = message_of(mistake.error, lambda: mistake.do(Place(tmp_path)))

    assert [word for word in mistake.words if word not in message] == []
