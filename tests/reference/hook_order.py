"""Fit, validate, test and predict with every hook recorded; print the order as JSON. `python hook_order.py PACKAGE`."""

import importlib
import json
import logging
import sys
import tempfile
import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader

package = sys.argv[1]
pl: Any = importlib.import_module(package)
Callback: Any = importlib.import_module(f"{package}.callbacks").Callback
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

calls: list[str] = []
SKIPPED = {"state_key", "log", "log_dict", "load_state_dict", "state_dict", "setup", "teardown"}


def recorder(who: str, name: str, base: type):
    original = getattr(base, name)

    def hook(self, *args, **kwargs):
        calls.append(f"{who}.{name}")
        return original(self, *args, **kwargs)

    hook.__name__ = name
    return hook


def hooks_of(cls: type) -> list[str]:
    return [n for n in dir(cls) if n.startswith("on_") and callable(getattr(cls, n)) and n not in ("on_gpu",)]


MODULE_CALLS = [
    "setup", "teardown", "prepare_data", "configure_model", "configure_callbacks", "configure_optimizers", "backward",
    "configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step",
    "transfer_batch_to_device",
]  # fmt: skip


class Spy(Callback):
    def setup(self, trainer, pl_module, stage):
        calls.append(f"C.setup.{stage.value}")

    def teardown(self, trainer, pl_module, stage):
        calls.append(f"C.teardown.{stage.value}")

    def state_dict(self):
        calls.append("C.state_dict")
        return {"x": 1}

    def load_state_dict(self, state_dict):
        calls.append("C.load_state_dict")


for name in hooks_of(Callback):
    if name != "on_exception":
        setattr(Spy, name, recorder("C", name, Callback))


class Model(pl.LightningModule):
    closure = True

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        calls.append("M.training_step")
        return self(batch).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        calls.append(f"M.validation_step.{dataloader_idx}")

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        calls.append(f"M.test_step.{dataloader_idx}")

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        calls.append(f"M.predict_step.{dataloader_idx}")
        return self(batch)

    def configure_optimizers(self):
        calls.append("M.configure_optimizers")
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        step = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": step, "interval": self.interval}}

    interval = "epoch"


for name in [*hooks_of(pl.LightningModule), *MODULE_CALLS]:
    if name != "configure_optimizers":
        setattr(Model, name, recorder("M", name, pl.LightningModule))


class Direct(Model):
    """The module without what asks for the closure path or hides the defaults."""


for name in ("optimizer_step",):
    setattr(Direct, name, getattr(pl.LightningModule, name))


class Data(pl.LightningDataModule):
    def _loader(self, word):
        calls.append(f"D.{word}_dataloader")
        return DataLoader(torch.ones(12, 4), batch_size=4)  # type: ignore[arg-type]  # a tensor is a dataset

    def train_dataloader(self):
        return self._loader("train")

    def val_dataloader(self):
        return [self._loader("val"), self._loader("val")]

    def test_dataloader(self):
        return self._loader("test")

    def predict_dataloader(self):
        return self._loader("predict")


for name in ("prepare_data", "setup", "teardown"):
    setattr(Data, name, recorder("D", name, pl.LightningDataModule))


def record(model, run, **settings):
    calls.clear()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[Spy()], default_root_dir=folder, **settings,
        )  # fmt: skip
        run(trainer, model)
    return list(calls)


def fit(trainer, model):
    trainer.fit(model, datamodule=Data())


def fit_and_resume(trainer, model):
    trainer.fit(model, datamodule=Data())
    path = trainer.checkpoint_callback.best_model_path
    calls.append("-- resume")
    again = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Spy()], default_root_dir=trainer.default_root_dir, max_epochs=2,
    )  # fmt: skip
    again.fit(model, datamodule=Data(), ckpt_path=path)


off = {"enable_checkpointing": False}
results = {
    "fit": record(Model(), fit, max_epochs=2, **off),
    "fit direct": record(Direct(), fit, max_epochs=2, **off),
    "fit accumulating": record(Direct(), fit, max_epochs=1, accumulate_grad_batches=2, **off),
    "fit closure accumulating": record(Model(), fit, max_epochs=1, accumulate_grad_batches=2, **off),
    "fit clipping": record(Direct(), fit, max_epochs=1, gradient_clip_val=1.0, **off),
    "fit val interval": record(Direct(), fit, max_epochs=1, val_check_interval=2, **off),
    "fit max_steps": record(Direct(), fit, max_steps=2, **off),
    "fit every second epoch": record(Direct(), fit, max_epochs=3, check_val_every_n_epoch=2, **off),
    "fit no sanity": record(Direct(), fit, max_epochs=1, num_sanity_val_steps=0, **off),
    "fast_dev_run": record(Direct(), fit, fast_dev_run=2, **off),
    "checkpoint and resume": record(Direct(), fit_and_resume, max_epochs=1),
    "validate": record(Model(), lambda t, m: t.validate(m, datamodule=Data(), verbose=False), **off),
    "test": record(Model(), lambda t, m: t.test(m, datamodule=Data(), verbose=False), **off),
    "predict": record(Model(), lambda t, m: t.predict(m, datamodule=Data()), **off),
}
print(json.dumps(results))  # noqa: T201 - what it is for
