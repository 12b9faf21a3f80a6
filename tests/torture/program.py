"""The program under torture: trains a small module, and writes down all that can be compared.

In the folder of a run: `record.jsonl`, a line for each batch as it was trained on, which a kill leaves as it is;
`logs`, the rows of the logger; `checkpoints`; and `final.pt`, the state at the end, if the run got there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import get_worker_info
from torchmetrics import MeanMetric

from fulmen import Callback, LightningModule, Trainer, seed_everything
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.plugins import AsyncCheckpointIO, MixedPrecision
from tests.torture.data import BATCH_SIZE, NUM_FEATURES, TrainData, parts, train_data, val_loader
from tests.torture.settings import HOOKS, Interruption, Setting

__all__ = ["Broken", "train"]

_MAX_EPOCHS = 3


class Broken(Exception):
    """The error that ends a run on purpose."""


class Record:
    """Appends lines to a file, each written at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, **entry: Any) -> None:
        os.write(self._file, (json.dumps(entry) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)


class Strike:
    """Carries out an interruption at its place."""

    def __init__(self, interruption: Interruption | None, record: Record) -> None:
        self.interruption = interruption
        self.record = record
        self.steps = 0  # training steps that the weights have seen
        self.places: dict[str, set[int]] = {}  # the hooks that came, each with its steps
        self._items_in_worker = 0
        self._is_done = interruption is None or not interruption.hook

    def at(self, hook: str) -> None:
        """Strike if this is the place."""
        self.places.setdefault(hook, set()).add(self.steps)
        if self._is_done or self.interruption is None or hook != self.interruption.hook:
            return
        steps = self.steps
        in_worker = get_worker_info() is not None
        if in_worker:  # which was forked when the epoch began
            self._items_in_worker += 1
            steps += 2 * self._items_in_worker // BATCH_SIZE
        if steps >= self.interruption.steps:
            self._is_done = True
            self.record.write(strike=str(self.interruption), in_worker=in_worker, after=self.steps)
            self._strike()

    def _strike(self) -> None:
        kind = self.interruption.kind if self.interruption is not None else ""
        if kind == "exception":
            raise Broken("on purpose")
        number = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "kill -9": signal.SIGKILL}[kind]
        os.kill(os.getpid(), number)

    @contextmanager
    def before_renames(self) -> Iterator[None]:
        """Strike just before a file gets its name, if that is the place."""
        with pytest.MonkeyPatch.context() as patch:
            for rename in (os.rename, os.replace):
                patch.setattr(os, rename.__name__, partial(self._first_strike, rename))
            yield

    def _first_strike(self, rename: Callable[..., None], *arguments: Any, **options: Any) -> None:
        self.at("rename")
        rename(*arguments, **options)


class Striker(Callback):
    """Tells a `Strike` of every hook."""

    def __init__(self, strike: Strike) -> None:
        for hook in HOOKS:
            if hook.startswith("on_"):
                setattr(self, hook, partial(self._at, strike, hook))

    @staticmethod
    def _at(strike: Strike, hook: str, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            strike.at(hook)


class RowLogger(CSVLogger):
    """Rows in a CSV file, with an interruption as one is logged."""

    strike: Strike

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.strike.at("log_metrics")
        super().log_metrics(metrics, step)


class Ema(Callback):
    """Keeps a moving average of the weights."""

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in self._weights(pl_module)}

    @staticmethod
    def _weights(module: LightningModule) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in module.named_parameters() if not name.startswith("averaged")]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            for name, value in self._weights(pl_module):
                self.average[name].lerp_(value.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.step = state_dict["average"], state_dict["step"]


class Module(LightningModule):
    """A small network with all that makes a resume hard: dropout, batch norm, averages, metrics, schedulers."""

    def __init__(self, setting: Setting, strike: Strike, record: Record) -> None:
        super().__init__()
        self.setting, self.strike, self.record = setting, strike, record
        self.automatic_optimization = setting.optimizers != "two by hand"
        self.body = nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)
        self.averaged = AveragedModel(self.head, use_buffers=True) if setting.averaged else None
        self.mean_output = MeanMetric()
        self.val_output = MeanMetric()
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor(0))
        self.data = TrainData()

    # ---- data
    def train_dataloader(self) -> Any:
        self.data = train_data(self.setting, self.strike)
        return self.data.loader

    def val_dataloader(self) -> Any:
        return val_loader(self.strike)

    # ---- steps
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.strike.at("training_step")
        there = [part for part in parts(batch) if part is not None]
        outputs = [self.head(self.body(samples)) for _, samples in there]
        loss = torch.stack([output.float().square().mean() for output in outputs]).mean()
        self._note_batch(batch, batch_idx, loss)
        self.mean_output.update(outputs[0].detach().float())
        size = len(there[0][0])
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=size)
        self.log("size", float(size), on_step=False, on_epoch=True, reduce_fx="sum", batch_size=size)
        self.log("output", self.mean_output, on_step=False, on_epoch=True, batch_size=size)
        if self.automatic_optimization:
            return loss
        return self._steps_by_hand(loss, batch_idx)

    def _note_batch(self, batch: Any, batch_idx: int, loss: Tensor) -> None:
        seen = [None if part is None else part[0].tolist() for part in parts(batch)]
        digest = hashlib.blake2b(digest_size=8)
        for part in parts(batch):
            if part is not None:
                digest.update(part[1].numpy().tobytes())
        value = float(loss).hex()
        step = int(self.steps)
        place = {"step": step, "epoch": self.current_epoch, "batch": batch_idx}
        self.record.write(**place, ids=seen, data=digest.hexdigest(), loss=value)
        self.steps += 1
        self.strike.steps = step + 1

    def _steps_by_hand(self, loss: Tensor, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc,attr-defined]  # there are two
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2:
            second.step()
        if self.setting.scheduler == "StepLR per step":
            self.lr_schedulers().step()  # type: ignore[union-attr]  # there is one

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.head)
        self.log("weight", float(self.head.weight.detach().sum()), batch_size=1)

    def on_train_epoch_end(self) -> None:
        self.log("steps_so_far", float(self.steps))
        if not self.automatic_optimization and self.setting.scheduler == "StepLR per epoch":
            self.lr_schedulers().step()  # type: ignore[union-attr]  # there is one

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output = self.head(self.body(batch[1])).float()
        self.val_output.update(output)
        self.log("val_loss", output.square().mean())
        self.log("val_output", self.val_output)
        if not self.trainer.sanity_checking:
            self.record.write(validated=int(self.steps), batch=batch_idx, loss=float(output.sum()).hex())

    # ---- set-up
    def on_fit_start(self) -> None:
        if self.trainer.ckpt_path is not None:  # what the generators were before shall not matter
            torch.rand(7), random.random(), np.random.random()

    def configure_optimizers(self) -> Any:
        name = self.setting.optimizers
        if name == "two by hand":
            pair = [torch.optim.AdamW(self.body.parameters(), 0.01), torch.optim.SGD(self.head.parameters(), 0.05, 0.9)]
            if not self.setting.scheduler.startswith("StepLR"):
                return pair
            return pair, [torch.optim.lr_scheduler.StepLR(pair[0], 2, 0.8)]
        weights = [*self.body.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(weights, 0.01) if name == "adamw" else torch.optim.SGD(weights, 0.05, 0.9)
        schedule = self._schedule(optimizer)
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def _schedule(self, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        schedulers = torch.optim.lr_scheduler
        name = self.setting.scheduler
        interval = "step" if name.endswith("step") or name == "OneCycleLR" else "epoch"
        if name == "none":
            return None
        if name.startswith("StepLR"):
            return {"scheduler": schedulers.StepLR(optimizer, 2, 0.8), "interval": interval}
        if name == "OneCycleLR":
            total = 2 * int(self.trainer.estimated_stepping_batches)
            return {"scheduler": schedulers.OneCycleLR(optimizer, 0.05, total), "interval": interval}
        monitor = "train_loss_step" if interval == "step" else "val_loss"
        plateau = schedulers.ReduceLROnPlateau(optimizer, factor=0.8, patience=0)
        return {"scheduler": plateau, "interval": interval, "monitor": monitor}


# ---- the run
def train(setting: Setting, folder: Path, interruption: Interruption | None = None) -> None:
    """Train to the end, from the last checkpoint in the folder if there is one.

    Args:
        setting: What is trained and how.
        folder: Folder of the run.
        interruption: What ends it before.

    Raises:
        Broken: The interruption is an exception.
    """
    record = Record(folder / "record.jsonl")
    strike = Strike(interruption, record)
    record.write(begin=str(interruption))
    try:
        with warnings.catch_warnings(), _environment(), strike.before_renames():
            warnings.simplefilter("ignore")
            logging.getLogger("fulmen").setLevel(logging.ERROR)
            seed_everything(setting.seed, workers=setting.seed_workers, verbose=False)
            module = Module(setting, strike, record)
            callbacks = _callbacks(setting, folder, strike)
            trainer = _trainer(setting, folder, strike, callbacks)
            trainer.fit(module, ckpt_path="auto")
        record.write(places={hook: sorted(steps) for hook, steps in strike.places.items()})
    finally:
        record.close()
    torch.save(_final_state(trainer, module, callbacks), folder / "final.pt")


@contextmanager
def _environment() -> Iterator[None]:
    """Compute in one thread, which is fastest for so little; put that back, and what `seed_everything` sets."""
    before, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)


def _callbacks(setting: Setting, folder: Path, strike: Strike) -> list[Callback]:
    amount, _, unit = setting.save.partition(" ")
    triggers: dict[str, Callable[[int], dict[str, Any]]] = {
        "step": lambda number: {"every_n_train_steps": number},
        "epoch": lambda number: {"every_n_epochs": number},
        "ms": lambda number: {"train_time_interval": timedelta(milliseconds=number)},
    }
    saver = ModelCheckpoint(
        folder / "checkpoints",
        monitor=setting.monitor,
        save_top_k=1 if setting.monitor is None else 2,
        save_last=setting.save_last,  # type: ignore[arg-type]  # one of the choices
        **triggers[unit.rstrip("s") if unit != "ms" else unit](int(amount)),
    )
    return [Striker(strike), *([Ema()] if setting.ema else []), saver]


def _trainer(setting: Setting, folder: Path, strike: Strike, callbacks: list[Callback]) -> Trainer:
    logger = RowLogger(folder, name="logs", version=0, flush_logs_every_n_steps=setting.flush_every)
    logger.strike = strike
    plugins: list[Any] = [AsyncCheckpointIO()] if setting.asynchronous else []
    if setting.precision == "scaled":
        plugins.append(MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=2.0**17, growth_interval=4)))
    return Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        max_epochs=_MAX_EPOCHS if setting.stop == "epochs" else -1,
        max_steps=-1 if setting.stop == "epochs" else (7 if setting.accumulate == 3 else 17),
        logger=logger,
        log_every_n_steps=setting.log_every,
        callbacks=callbacks,
        plugins=plugins,
        precision=None if setting.precision == "scaled" else setting.precision,
        accumulate_grad_batches=setting.accumulate,
        gradient_clip_val=setting.clip,
        limit_train_batches=setting.limit_train,
        num_sanity_val_steps=setting.sanity_steps,
        reload_dataloaders_every_n_epochs=setting.reload_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        **_VALIDATION[setting.validate],
    )


_VALIDATION: dict[str, dict[str, Any]] = {
    "off": {"limit_val_batches": 0},
    "epoch": {},
    "every second epoch": {"check_val_every_n_epoch": 2},
    "3 batches": {"val_check_interval": 3},
    "half": {"val_check_interval": 0.5},
    "5 batches across epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
}


def _final_state(trainer: Trainer, module: Module, callbacks: list[Callback]) -> dict[str, Any]:
    saver = trainer.checkpoint_callback
    if not isinstance(saver, ModelCheckpoint):
        raise TypeError(f"The run has lost its checkpoint callback: {saver!r}.")
    return {
        "weights": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "precision": trainer.precision_plugin.state_dict(),
        "averages": [callback.state_dict() for callback in callbacks if isinstance(callback, Ema)],
        "random numbers": {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "loaders": [generator.get_state() for generator in module.data.generators],
        },
        "metrics": {"callback": dict(trainer.callback_metrics), "logged": dict(trainer.logged_metrics)},
        "best": {} if module.setting.save.endswith("ms") else _scores(saver),  # where it is no matter of the clock
        "counters": {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "loop": trainer.fit_loop.state_dict(),
            "position": trainer.fit_loop.position_state(),
        },
    }


def _scores(saver: ModelCheckpoint) -> dict[str, Any]:
    scores = sorted(float(score) for score in saver.best_k_models.values())
    return {"kept": scores, "best": saver.best_model_score, "newest": saver.current_score}
