"""Fit with many settings; print what was done in which order as JSON. `python cadence.py PACKAGE`.

t1.2: a training batch (epoch 1, batch 2), o: an optimizer step, s: a scheduler's step, V: a validation, E: an epoch's
end; then `global_step` and `current_epoch`.
"""

import importlib
import json
import logging
import sys
import tempfile
import warnings
from typing import Any

import torch

package = sys.argv[1]
pl: Any = importlib.import_module(package)
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


class Batches:
    def __init__(self, number):
        self.number = number

    def __iter__(self):
        return iter(torch.ones(self.number, 1))


class Sized(Batches):
    def __len__(self):
        return self.number


class Model(pl.LightningModule):
    def __init__(self, interval="epoch", frequency=1, stop_at=None, skip_at=None, stop_in=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.scheduling = {"interval": interval, "frequency": frequency}
        self.stop_at, self.skip_at, self.stop_in = stop_at, skip_at, stop_in
        self.events = []

    def on_train_epoch_start(self):
        self.trainer.should_stop = self.trainer.should_stop or self.stop_in == "on_train_epoch_start"

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if (self.current_epoch, batch_idx) == self.skip_at else None

    def training_step(self, batch, batch_idx):
        self.events.append(f"t{self.current_epoch}.{batch_idx}")
        if (self.current_epoch, batch_idx) == self.stop_at:
            self.trainer.should_stop = True
        return self.layer(batch).sum()

    def on_before_optimizer_step(self, optimizer):
        self.events.append("o")

    def lr_scheduler_step(self, scheduler, metric):
        self.events.append("s")
        super().lr_scheduler_step(scheduler, metric)

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_start(self):
        if not self.trainer.sanity_checking:
            self.events.append("V")

    def on_validation_end(self):
        self.trainer.should_stop = self.trainer.should_stop or self.stop_in == "on_validation_end"

    def on_train_epoch_end(self):
        self.events.append("E")
        self.trainer.should_stop = self.trainer.should_stop or self.stop_in == "on_train_epoch_end"

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.scheduling}}


def record(*, batches=5, sized=True, model=None, **settings):
    module = Model(**(model or {}))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, **settings,
        )  # fmt: skip
        try:
            trainer.fit(module, (Sized if sized else Batches)(batches), Sized(2))
        except Exception as error:
            return type(error).__name__
    return f"{' '.join(module.events)} | {trainer.global_step} {trainer.current_epoch}"


SETTINGS: list[dict[str, Any]] = [
    {"max_epochs": 2},
    {"max_epochs": 0},
    {"max_steps": 0},
    {"max_steps": 7},
    {"max_steps": 5},
    {"max_epochs": 1, "max_steps": 7},
    {"max_epochs": 3, "max_steps": 7},
    {"max_epochs": 2, "max_steps": 3, "accumulate_grad_batches": 2},
    {"max_epochs": 1, "limit_train_batches": 3},
    {"max_epochs": 1, "limit_train_batches": 0.5},
    {"max_epochs": 1, "limit_train_batches": 9},
    {"max_epochs": 2, "limit_train_batches": 0},
    {"max_epochs": 1, "limit_train_batches": 0.1},
    {"max_epochs": 1, "limit_val_batches": 0},
    {"max_epochs": 2, "accumulate_grad_batches": 2},
    {"max_epochs": 2, "accumulate_grad_batches": 9},
    {"max_epochs": 2, "val_check_interval": 2},
    {"max_epochs": 2, "val_check_interval": 1},
    {"max_epochs": 1, "val_check_interval": 6},
    {"max_epochs": 1, "val_check_interval": 6, "limit_val_batches": 0},
    {"max_epochs": 1, "batches": 10, "val_check_interval": 0.3},
    {"max_epochs": 1, "val_check_interval": 0.1},
    {"max_epochs": 3, "check_val_every_n_epoch": 2},
    {"max_epochs": 4, "check_val_every_n_epoch": 2, "val_check_interval": 0.5},
    {"max_epochs": 2, "check_val_every_n_epoch": None},
    {"max_epochs": 3, "check_val_every_n_epoch": None, "val_check_interval": 7},
    {"max_epochs": 3, "check_val_every_n_epoch": None, "val_check_interval": 3},
    {"max_epochs": 2, "sized": False},
    {"max_epochs": 2, "sized": False, "limit_train_batches": 3},
    {"max_epochs": 2, "sized": False, "limit_train_batches": 0.5},
    {"max_epochs": 1, "sized": False, "val_check_interval": 2},
    {"max_epochs": 1, "sized": False, "val_check_interval": 0.5},
    {"max_epochs": 1, "sized": False, "accumulate_grad_batches": 2},
    {"max_epochs": 2, "sized": False, "check_val_every_n_epoch": None},
    {"max_epochs": 4, "model": {"frequency": 2}},
    {"max_epochs": 2, "model": {"interval": "step"}},
    {"max_epochs": 2, "batches": 4, "model": {"interval": "step", "frequency": 2}},
    {"max_steps": 4, "model": {"interval": "step"}},
    {"max_epochs": 2, "accumulate_grad_batches": 2, "model": {"interval": "step"}},
    {"max_epochs": 3, "model": {"stop_at": (1, 2)}},
    {"max_epochs": 3, "model": {"stop_at": (1, 4)}},
    {"max_epochs": 4, "min_epochs": 3, "model": {"stop_at": (0, 1)}},
    {"max_epochs": 4, "min_steps": 7, "model": {"stop_at": (0, 1)}},
    {"max_epochs": 4, "min_steps": 3, "model": {"stop_at": (0, 1)}},
    {"max_epochs": 4, "min_steps": 3, "min_epochs": 0, "model": {"stop_at": (0, 1)}},
    {"max_epochs": 2, "min_epochs": 3, "model": {"stop_at": (0, 1)}},
    {"max_epochs": 3, "model": {"stop_in": "on_train_epoch_start"}},
    {"max_epochs": 3, "model": {"stop_in": "on_validation_end"}, "val_check_interval": 2},
    {"max_epochs": 3, "model": {"stop_in": "on_train_epoch_end"}},
    {"max_epochs": 2, "model": {"skip_at": (0, 2)}},
    {"max_epochs": 2, "model": {"skip_at": (0, 0)}},
    {"max_epochs": 3, "model": {"skip_at": (0, 3)}, "check_val_every_n_epoch": None, "val_check_interval": 3},
    {"fast_dev_run": True},
    {"fast_dev_run": 3},
    {"overfit_batches": 2, "max_epochs": 2},
]
results = {json.dumps(settings): record(**settings) for settings in SETTINGS}
print(json.dumps(results, indent=0))  # noqa: T201 - its result
