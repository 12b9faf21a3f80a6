"""ModelCheckpoint: saves the model during training and keeps the best, all, or the newest of its files.

What happens::

    trigger (steps, time, epoch)
      inside an accumulation window?                 yes: wait for its end
      weights finite?                                no: write nothing, say so
      value of `monitor` belongs to these weights?   no: wait for the validation that computes it
      plan: which file is written, which become obsolete, what "best" and "last" will be
      write the files -> publish paths and scores -> once they are durable: set links, delete what is obsolete
"""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fulmen.callbacks.checkpoint import Checkpoint
from fulmen.callbacks.checkpoint_files import (
    NameClaims,
    can_link,
    is_inside,
    is_same_file,
    sweep_claims,
    warn_if_not_empty,
)
from fulmen.callbacks.checkpoint_naming import absolute_folder, default_folder, fill_template, unused_path
from fulmen.callbacks.checkpoint_records import Plan, Records
from fulmen.callbacks.checkpoint_schedule import BatchTrigger, ScoreSource
from fulmen.callbacks.checkpoint_settings import check_settings
from fulmen.callbacks.checkpoint_weights import FiniteWeights
from fulmen.callbacks.monitor import (
    MetricMonitor,
    close_names,
    final_at_train_epoch_end,
    has_validation,
    is_better,
    worst_score,
)
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.files import atomic_symlink, ensure_writable, get_filesystem, is_local
from fulmen.utilities.lazy import require
from fulmen.utilities.rank_zero import WarningCache, rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["ModelCheckpoint"]

_warnings = WarningCache()
_RECORD_NAMES = tuple(field.name for field in fields(Records))


class ModelCheckpoint(MetricMonitor, Checkpoint):
    """Save the model every so many epochs, steps or minutes, and keep the best files by a monitored metric.

    A file is deleted only if this run, or the run it resumes, wrote it, and only after its successor is on disk; this
    holds with `AsyncCheckpointIO`, too. Runs that share a folder never take the same name. Weights that are not finite
    are not saved, so that the best and the last file can always be gone on from; a warning says where they are bad.
    A value of `monitor` that is not finite ranks behind all others. A save that is due inside an accumulation window
    waits for its end; its score is then that of the weights one optimizer step before.

    The score of a file otherwise belongs to its weights: when the monitored metric comes from validation, a save that
    is due between two validations waits for the next one (with `save_top_k=-1` it is written at once, without a
    score). `last.ckpt` does not wait; it is the newest state after every trigger and at the end of training.

    Args:
        dirpath: Folder of the files; default beside the logs of the first logger, else in `default_root_dir`.
        filename: Template such as `"{epoch}-{val_loss:.2f}"`; default `"{epoch}-{step}"`.
        monitor: Logged metric that decides which files are best; without one the newest is kept.
        verbose: Say when something is saved.
        save_last: True also writes `last.ckpt`; "link" makes it a link to the file just written where there is one.
        save_top_k: How many files to keep; -1 for all, 0 for none.
        save_on_exception: Save when an exception or Ctrl-C ends training.
        save_weights_only: Save no optimizers, schedulers and callbacks; such a file cannot be resumed from.
        mode: "min" if a smaller value of `monitor` is better, else "max".
        auto_insert_metric_name: Write `name=value` into file names, not only the value.
        every_n_train_steps: Save after every so many optimizer steps; 0 for never.
        train_time_interval: Save when this much time has passed since the last such save.
        every_n_epochs: Save after every so many epochs, 0 for never; 1 if no trigger is given.
        save_on_train_epoch_end: Save epochs when training, not validation, ends. Default: at the end of validation if
            that does not run exactly once at the end of each epoch.
        enable_version_counter: Append `-v1`, `-v2` ... to names that exist, instead of overwriting.

    Attributes:
        best_model_path: File with the best score; without `monitor` the newest file.
        best_model_score: Its score.
        best_k_models: Scores of all kept files.
        kth_best_model_path: The worst of the kept files, `kth_value` is its score.
        last_model_path: The newest `last.ckpt`.
        current_score: Score of the newest file.

    Raises:
        MisconfigurationException: More than one trigger, a negative number, or several files without `monitor`.

    Example::

        Trainer(callbacks=ModelCheckpoint(monitor="val_loss", save_top_k=3, save_last=True))
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    best_model_path: str
    best_model_score: Tensor | None
    current_score: Tensor | None
    best_k_models: dict[str, Tensor]
    kth_best_model_path: str
    kth_value: Tensor
    last_model_path: str

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        super().__init__(monitor, mode)
        # ---- settings
        self.dirpath = None if dirpath is None else absolute_folder(os.fspath(dirpath))
        self.filename = filename
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.auto_insert_metric_name = auto_insert_metric_name
        if every_n_train_steps is None and train_time_interval is None and every_n_epochs is None:
            every_n_epochs = 1
        self._every_n_train_steps = every_n_train_steps or 0
        self._train_time_interval = train_time_interval
        self._every_n_epochs = every_n_epochs or 0
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter
        check_settings(
            {
                "every_n_train_steps": self._every_n_train_steps,
                "train_time_interval": train_time_interval,
                "every_n_epochs": self._every_n_epochs,
            },
            monitor=monitor,
            save_top_k=save_top_k,
            save_last=save_last,
            dirpath=self.dirpath,
        )
        # ---- state of the files
        self._take(Records.empty(mode))
        self._plan: Plan | None = None  # the save that is being written
        self._own_files: set[str] = set()
        self._claims = NameClaims()
        self._folder_is_default = dirpath is None
        self._links_work: bool | None = None  # in the folder, once somebody asked
        # ---- when to save
        self._batch_trigger = BatchTrigger(self._every_n_train_steps, train_time_interval)
        self._forget_steps()
        self._batch_end_is_idle = False
        self._next_look: float = 0  # step before which `on_train_batch_end` has nothing to look at

    def _forget_steps(self) -> None:
        """Forget at which steps something was saved: another run counts its own."""
        self._score_source = ScoreSource(self.monitor)
        self._postponed = False  # a save waits for a score
        self._held: tuple[dict[str, Any], bool] | None = None  # waits for a window's end: metrics, is the score current
        self._unscored: tuple[str, int] = ("", -1)  # file written without a score, and at which step
        self._last_global_step_saved = 0  # step whose trigger is dealt with
        self._last_file_step = -1  # step of the newest file of any kind
        self._newest_last_step = -1  # step of the `last` file
        self._missed_epoch = False  # a save was due in an epoch without validation
        self._validation_ran = False
        self._is_resumed = False
        self._finite_weights = FiniteWeights()
        self._is_training = False  # before, the state of a resumed run is not there yet

    # ---- what the checkpoint says about itself
    @property
    def state_key(self) -> str:
        """Key in the checkpoint; it holds the settings, so that several can be used at once."""
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    @property
    def every_n_epochs(self) -> int | None:
        """After how many epochs a save is due; 0 for never."""
        return self._every_n_epochs

    def state_dict(self) -> dict[str, Any]:
        """Return paths and scores; inside a file that is being written they include that file itself."""
        records = self._plan.records if self._plan is not None else self._records()
        state: dict[str, Any] = {name: getattr(records, name) for name in _RECORD_NAMES}
        state |= {"monitor": self.monitor, "dirpath": self.dirpath, "best_k_models": dict(records.best_k_models)}
        if self._is_training:
            state["schedule"] = self._schedule_state()
        return {**state, "postponed": True} if self._postponed or self._held is not None else state

    def _schedule_state(self) -> dict[str, Any]:
        """Return what a resumed run must know to save at the same steps."""
        return {
            "saved_step": self._last_global_step_saved,
            "file_step": self._last_file_step,
            "last_step": self._newest_last_step,
            "unscored": list(self._unscored),
            "score_source": self._score_source.state(),
            "missed_epoch": self._missed_epoch,
            "validation_ran": self._validation_ran,
            "elapsed_s": self._batch_trigger.elapsed_s(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the files of an earlier run, if it used the same folder; else only remember its best file.

        The state may come from a file of others: whatever paths it holds, files outside of the callback's own folder,
        or without its extension, are never renamed or deleted on account of it.
        """
        self._is_resumed = True
        self._postponed = bool(state_dict.get("postponed", False))
        schedule = {**self._schedule_state(), **state_dict.get("schedule", {})}
        self._last_global_step_saved = int(schedule["saved_step"])
        self._missed_epoch, self._validation_ran = bool(schedule["missed_epoch"]), bool(schedule["validation_ran"])
        self._score_source.load_state(schedule["score_source"])
        self._batch_trigger.go_on(float(schedule["elapsed_s"]))
        saved_in = state_dict.get("dirpath", self.dirpath)
        if saved_in == self.dirpath:
            self._go_on_with_files(state_dict, schedule)
            return
        rank_zero_warn(
            f"The folder of `ModelCheckpoint` changed from {saved_in!r} to {self.dirpath!r}, so the scores and files of"
            " the earlier run are not taken over, except `best_model_path`. Pass the same `dirpath` to go on with them."
        )
        self.best_model_path = str(state_dict.get("best_model_path", ""))

    def _go_on_with_files(self, state: dict[str, Any], schedule: dict[str, Any]) -> None:
        records, foreign = Records.restored(state, mode=self.mode, is_own=self._can_be_own)
        if foreign:
            rank_zero_warn(
                f"The checkpoint names files as its own that cannot be: {list(foreign)}. They are outside of the"
                f" checkpoint folder {self.dirpath!r} or no `{self.FILE_EXTENSION}` files. They are left alone."
            )
        self._take(records)
        self._own_files |= records.owned()
        self._last_file_step, self._newest_last_step = int(schedule["file_step"]), int(schedule["last_step"])
        path, step = schedule["unscored"]
        if isinstance(path, str) and self._can_be_own(path):
            self._own_files.add(path)
            self._unscored = (path, int(step))

    def _can_be_own(self, path: str) -> bool:
        return path.endswith(self.FILE_EXTENSION) and is_inside(path, str(self.dirpath))

    def _records(self) -> Records:
        return Records(**{name: getattr(self, name) for name in _RECORD_NAMES})

    def _take(self, records: Records) -> None:
        for name in _RECORD_NAMES:
            setattr(self, name, getattr(records, name))

    def to_yaml(self, filepath: str | Path | None = None) -> None:
        """Write the scores of the kept files as YAML.

        Args:
            filepath: Where to; default `best_k_models.yaml` in the folder of the checkpoints.
        """
        yaml = require("yaml", extra="yaml", for_="ModelCheckpoint.to_yaml")
        target = os.fspath(filepath or os.path.join(self.dirpath or "", "best_k_models.yaml"))
        with get_filesystem(target).open(target, "w") as file:
            yaml.dump({path: float(score) for path, score in self.best_k_models.items()}, file)

    # ---- hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder, the same on all ranks; begin a fit as if the callback had served no other before."""
        if stage == "fit":
            self._forget_steps()
        folder = None
        if trainer.is_global_zero:
            folder = self.dirpath if self.dirpath is not None else absolute_folder(default_folder(trainer))
        self.dirpath = trainer.strategy.broadcast(folder)
        self._links_work = None
        if not self._is_off(trainer) and (self.save_top_k != 0 or self.save_last) and trainer.is_global_zero:
            ensure_writable(str(self.dirpath))  # before any work is lost
            sweep_claims(str(self.dirpath))

    @property
    def folder_is_default(self) -> bool:
        """Whether the folder was not given but is derived, from the first logger's version or `default_root_dir`."""
        return self._folder_is_default

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count; a resumed run leaves out of its records what is no longer there."""
        self._is_training = True
        self._batch_trigger.start(trainer)
        self._batch_end_is_idle = self._is_off(trainer) or not self._batch_trigger.is_used
        self._next_look = 0  # the first batch shows whether training logs `monitor`
        if self._is_off(trainer):
            return
        if self._is_resumed:
            self._forget_missing(trainer)
        if (self.save_top_k != 0 or self.save_last) and trainer.is_global_zero:
            warn_if_not_empty(str(self.dirpath), trainer.ckpt_path)
        if self._save_on_train_epoch_end is False and self._every_n_epochs and not has_validation(trainer):
            rank_zero_warn(
                "`ModelCheckpoint(save_on_train_epoch_end=False)` saves when validation ends, but this run validates"
                " nothing, so nothing will be saved. Remove the argument, or add validation."
            )

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn from the sanity check whether validation logs `monitor`."""
        super().on_sanity_check_end(trainer, pl_module)
        if self.monitor is not None and self.monitor in trainer.callback_metrics:
            self._score_source.origin = "validation"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when enough steps were done or enough time has passed, and what has waited for a window's end."""
        if self._held is not None:
            self._save_held(trainer)
        if self._batch_end_is_idle:
            return
        trigger = self._batch_trigger
        if trainer.global_step < self._next_look and not (trigger.watches_time and trigger.time_may_be_up()):
            return
        is_due = trigger.is_due(trainer)
        trainer.metrics.sync(self.monitor)
        if self._score_source.origin is None and (is_due or trainer.global_step >= self._next_look):
            self._score_source.note(trainer, "training step")
        self._next_look = trigger.next_step
        if is_due:
            self._save_if_scored(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn whether training logs `monitor`: then it is there before validation."""
        if self._score_source.origin is None and not self._is_off(trainer):
            trainer.metrics.sync(self.monitor)
            self._score_source.note(trainer, "training step")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is bound to validation, or waited for its metrics."""
        if self._is_off(trainer):
            return
        self._validation_ran = True
        self._score_source.note(trainer, "validation")
        bound_here = not final_at_train_epoch_end(trainer, self._save_on_train_epoch_end)
        self._save_if_due(trainer, bound_here and self._epoch_is_due(trainer), raise_if_missing=bound_here)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is bound to the end of the training epoch, or waited for its metrics."""
        if self._is_off(trainer):
            return
        self._save_held(trainer)
        self._score_source.note(trainer, "training epoch")
        is_due = self._epoch_is_due(trainer)
        bound_here = final_at_train_epoch_end(trainer, self._save_on_train_epoch_end)
        self._missed_epoch |= is_due and not bound_here
        self._save_if_due(trainer, is_due and bound_here, raise_if_missing=self._validation_ran)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what still waits for a score, and bring `last` up to date."""
        if self._is_off(trainer):
            return
        is_wanted = self._postponed or self._missed_epoch or self._newest_last_step != trainer.global_step
        if not is_wanted or not self._weights_are_finite(trainer):
            return
        # the last epoch is complete and `current_epoch` is already its successor
        metrics = self._candidates(trainer, epoch=max(trainer.current_epoch - 1, 0))
        plan = Plan(self._records())
        if self._postponed or (self._missed_epoch and self._last_file_step < 0):
            self._postponed = False
            if not self._score_source.is_current(trainer):
                metrics[str(self.monitor)] = torch.tensor(math.nan)
            plan = self._plan_model(trainer, metrics)
        if plan.model_path or self._newest_last_step != trainer.global_step:
            plan = self._with_last(trainer, plan, metrics)
        self._write(trainer, plan)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give free what names were reserved for files that did not come to be."""
        self._claims.release_all()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the state at the moment of an exception, if asked to; it is not ranked among the best."""
        is_wanted = self.save_on_exception and self._is_training and not self._is_off(trainer)
        if not is_wanted or self._last_file_step == trainer.global_step:
            return
        metrics = self._candidates(trainer)
        try:
            if not self._weights_are_finite(trainer):
                return
            path = self._unused_path(trainer, metrics, taken=self._records().owned())
            self._write(trainer, self._with_last(trainer, Plan(self._records(), path), metrics))
        except Exception as error:  # the exception that ends training matters more
            rank_zero_warn(f"`ModelCheckpoint` could not save after {exception!r}: {error!r}.")

    # ---- when
    def _is_off(self, trainer: Trainer) -> bool:
        return bool(trainer.fast_dev_run) or trainer.state.fn != "fit" or trainer.sanity_checking

    def _epoch_is_due(self, trainer: Trainer) -> bool:
        return self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _save_if_due(self, trainer: Trainer, is_due: bool, *, raise_if_missing: bool) -> None:
        waits = self._postponed or self._unscored[0] != ""
        if not is_due and not waits:
            return
        if self.save_top_k != 0 and self._score_source.is_missing(trainer):
            self._report_missing(trainer, raise_if_missing, is_due)
        elif is_due or self._postponed or self._unscored[1] == trainer.global_step:
            self._save_if_scored(trainer)

    def _report_missing(self, trainer: Trainer, is_error: bool, is_due: bool) -> None:
        message = (
            f"`ModelCheckpoint(monitor={self.monitor!r})` could not find the monitored metric, so it cannot tell which"
            f" checkpoint is best.{close_names(str(self.monitor), trainer.callback_metrics)}"
            f" Log it with `self.log({self.monitor!r}, ...)`, or correct `monitor`."
        )
        if is_error:
            raise MisconfigurationException(message)
        if is_due:
            _warnings.warn(message)
            self._postponed = has_validation(trainer)
            self._refresh_last(trainer)

    # ---- what
    def _save_if_scored(self, trainer: Trainer) -> None:
        metrics, is_current = self._candidates(trainer), self._score_source.is_current(trainer)
        if trainer.fit_loop.has_started_window:  # the gradients so far would be lost
            self._held = (metrics, is_current)
        else:
            self._save(trainer, metrics, is_current)

    def _save_held(self, trainer: Trainer) -> None:
        """Do the save that came due inside an accumulation window, once that is over."""
        if self._held is None or trainer.fit_loop.has_started_window:
            return
        (metrics, is_current), self._held = self._held, None
        if self.monitor != "step":
            metrics["step"] = trainer.global_step
        self._save(trainer, metrics, is_current)

    def _save(self, trainer: Trainer, metrics: dict[str, Any], is_current: bool) -> None:
        step = trainer.global_step
        if self._last_global_step_saved == step:
            return
        if not self._weights_are_finite(trainer):
            self._postponed = False
            return
        if self.save_top_k == 0 or is_current:
            self._postponed = False
            self._last_global_step_saved = step
            plan = self._plan_model(trainer, metrics)
        elif self.save_top_k == -1:
            metrics[str(self.monitor)] = torch.tensor(math.nan)
            path = self._unused_path(trainer, metrics)
            self._unscored = (path, step)
            plan = Plan(self._records(), path)
        else:
            self._postponed = True
            plan = Plan(self._records())
        self._write(trainer, self._with_last(trainer, plan, metrics))

    def _refresh_last(self, trainer: Trainer) -> None:
        if self.save_last and not trainer.fit_loop.has_started_window and self._weights_are_finite(trainer):
            self._write(trainer, self._with_last(trainer, Plan(self._records()), self._candidates(trainer)))

    def _weights_are_finite(self, trainer: Trainer) -> bool:
        return (self.save_top_k == 0 and not self.save_last) or self._finite_weights.check(trainer)

    def _candidates(self, trainer: Trainer, epoch: int | None = None) -> dict[str, Any]:
        """Values that file names and ranking can use."""
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        metrics["epoch"] = int(metrics.get("epoch", trainer.current_epoch if epoch is None else epoch))
        metrics["step"] = int(metrics.get("step", trainer.global_step))
        return metrics

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Tell whether a score is good enough for its checkpoint to be kept.

        Args:
            trainer: The running trainer.
            current: The score; `None` is never good enough.
        """
        if current is None:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        better = is_better(self.mode, current, self.best_k_models[self.kth_best_model_path])
        return bool(trainer.strategy.reduce_boolean_decision(better))

    def _plan_model(self, trainer: Trainer, metrics: dict[str, Any]) -> Plan:
        """Decide about the file that may become the best."""
        records = self._records()
        if self.save_top_k == 0:
            return Plan(records)
        if self.monitor is None:
            replaced = self.best_model_path if self.save_top_k == 1 else ""
            path = self._unused_path(trainer, metrics, allowed=replaced)
            return Plan(records.with_newest(path), path, obsolete=(replaced,))
        score = torch.as_tensor(metrics[self.monitor]).detach().cpu().clone()  # sync: a checkpoint is due
        score = score if bool(score.isfinite()) else worst_score(self.mode)
        if not self.check_monitor_top_k(trainer, score):
            if self.verbose:
                rank_zero_info(f"{self.monitor} = {score:.5f} is not among the best {self.save_top_k}: not saved.")
            return Plan(records)
        unscored = self._unscored[0] if self._unscored[1] == trainer.global_step else ""
        is_full = len(self.best_k_models) == self.save_top_k
        path = self._unused_path(trainer, metrics, allowed=unscored or (self.kth_best_model_path if is_full else ""))
        records, dropped = records.with_scored(path, score, keep=self.save_top_k, mode=self.mode)
        return Plan(records, path, obsolete=(*dropped, unscored))

    def _with_last(self, trainer: Trainer, plan: Plan, metrics: dict[str, Any]) -> Plan:
        """Add the `last` file to a plan."""
        if not self.save_last:
            return plan
        taken = plan.records.owned() - {self.last_model_path} | {plan.model_path}
        path = self._unused_path(
            trainer, metrics, template=self.CHECKPOINT_NAME_LAST, allowed=self.last_model_path, taken=taken
        )
        records = replace(plan.records, last_model_path=path)
        return replace(plan, records=records, last_path=path, obsolete=(*plan.obsolete, self.last_model_path))

    # ---- writing
    def _write(self, trainer: Trainer, plan: Plan) -> None:
        """Write files, then publish what they hold, then delete what they replace."""
        self._plan = plan  # `state_dict` tells each file what will be true once it is written
        try:
            if plan.model_path:
                self._write_file(trainer, plan.model_path)
                self._publish(trainer, plan.model_path, replace(plan.records, last_model_path=self.last_model_path))
            if plan.last_path:
                step, self._newest_last_step = self._newest_last_step, trainer.global_step
                try:
                    self._write_last(trainer, plan)
                except BaseException:
                    self._newest_last_step = step
                    raise
                self._publish(trainer, plan.last_path, plan.records)
        finally:
            self._plan = None
        for path in plan.obsolete:
            if path not in ("", plan.model_path, plan.last_path):
                self._remove(trainer, path)

    def _write_file(self, trainer: Trainer, path: str) -> None:
        step, self._last_file_step = self._last_file_step, trainer.global_step  # as the file says of itself
        try:
            trainer.save_checkpoint(path, self.save_weights_only)
        except BaseException:
            self._last_file_step = step
            self._claims.release(path)
            raise
        if trainer.is_global_zero:  # an IO in the background holds the name until the file is there
            trainer.strategy.checkpoint_io.publish(partial(self._claims.release, path))

    def _write_last(self, trainer: Trainer, plan: Plan) -> None:
        if self.save_last == "link" and plan.model_path and self._can_link(trainer):
            if trainer.is_global_zero:
                publish = trainer.strategy.checkpoint_io.publish
                publish(partial(atomic_symlink, plan.model_path, plan.last_path))
                publish(partial(self._claims.release, plan.last_path))
            trainer.strategy.barrier("ModelCheckpoint.link")
        else:
            self._write_file(trainer, plan.last_path)

    def _can_link(self, trainer: Trainer) -> bool:
        if self._links_work is None:
            self._links_work = trainer.strategy.broadcast(can_link(str(self.dirpath)))
        return self._links_work

    def _publish(self, trainer: Trainer, path: str, records: Records) -> None:
        self._own_files.add(path)
        self._last_file_step = trainer.global_step
        self._take(records)
        if self.verbose:
            current = records.current_score
            score = "" if self.monitor is None or current is None else f" ({self.monitor} = {float(current):.6g})"
            rank_zero_info(f"Epoch {trainer.current_epoch}, step {trainer.global_step}: saved {path!r}{score}.")
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(weakref.proxy(self))

    def _remove(self, trainer: Trainer, path: str) -> None:
        if path in self._own_files and self._can_be_own(path) and not is_same_file(trainer.ckpt_path, path):
            trainer.strategy.remove_checkpoint(path)
            self._own_files.discard(path)

    def _forget_missing(self, trainer: Trainer) -> None:
        """Leave out files that an earlier run deleted after the checkpoint that is gone on from."""
        owned = sorted(path for path in self._records().owned() if path in self._own_files)
        missing = {path for path in owned if not self.file_exists(path, trainer)}
        if missing:
            rank_zero_info(f"`ModelCheckpoint`: no longer there, so no longer kept: {sorted(missing)}.")
            self._take(self._records().without(missing, self.mode))
            self._own_files -= missing

    # ---- names
    def format_checkpoint_name(
        self, metrics: dict[str, Any], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """Return the path of a checkpoint.

        Args:
            metrics: Values for the fields of the template.
            filename: The template; default that of this callback.
            ver: Version number to append.
            prefix: Text to put in front.

        Example::

            name = ModelCheckpoint(filename="{epoch}-{acc:.2f}").format_checkpoint_name({"epoch": 2, "acc": 0.5})
            assert name == "epoch=2-acc=0.50.ckpt"
        """
        default = f"{{epoch}}{self.CHECKPOINT_JOIN_CHAR}{{step}}"
        name = fill_template(
            filename or self.filename or default,
            metrics,
            insert_names=self.auto_insert_metric_name,
            join_char=self.CHECKPOINT_EQUALS_CHAR,
        )
        version = None if ver is None else f"v{ver}"
        name = self.CHECKPOINT_JOIN_CHAR.join(part for part in (prefix, name, version) if part)
        return os.path.join(self.dirpath or "", name + self.FILE_EXTENSION)

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Tell whether rank 0 sees a file; the answer is the same on all ranks."""
        path = os.fspath(filepath)
        exists = os.path.exists(path) if is_local(path) else get_filesystem(path).exists(path)
        return bool(trainer.strategy.broadcast(exists))

    def _unused_path(
        self,
        trainer: Trainer,
        metrics: dict[str, Any],
        *,
        template: str | None = None,
        allowed: str = "",
        taken: set[str] | frozenset[str] = frozenset(),
    ) -> str:
        def exists(path: str) -> bool:
            if path in taken or not self._enable_version_counter:
                return path in taken
            # own files count before they are there: an `AsyncCheckpointIO` may still have to write them
            if path in self._own_files or self.file_exists(path, trainer):
                return True
            is_free = trainer.strategy.broadcast(self._claims.claim(path) if trainer.is_global_zero else None)
            return not is_free

        def name(version: int | None) -> str:  # the same on all ranks, also where it holds what each has logged itself
            return trainer.strategy.broadcast(self.format_checkpoint_name(metrics, template, version))

        return unused_path(name, exists, self.STARTING_VERSION, allowed)
