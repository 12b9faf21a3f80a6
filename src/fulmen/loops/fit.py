"""The training loop. `FitLoop.run` is the page to read."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fulmen.data.prefetch import TrainBatches
from fulmen.loops.agreement import TIME_IS_UP, SignalAgreement
from fulmen.loops.clock import count_samples
from fulmen.loops.evaluate import EvaluationLoop, ValidationLeft
from fulmen.loops.interruption import BegunValidation, back_to_window_start
from fulmen.loops.limits import Limits
from fulmen.loops.optimization import AutomaticOptimization, ManualOptimization
from fulmen.loops.progress import FitProgress, Progress
from fulmen.loops.resume import FitResume
from fulmen.loops.schedule import SchedulerSteps, ValidationPlan, validation_interval
from fulmen.loops.transfer import choose_transfer
from fulmen.metrics.store import MetricStore
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from torch import Tensor

    from fulmen.trainer.trainer import Trainer

__all__ = ["SKIP_EPOCH", "FitLoop"]

log = logging.getLogger(__name__)
SKIP_EPOCH = -1


class FitLoop:
    """Trains: owns the counters, the training batches and what is logged while training.

    Args:
        trainer: The Trainer that runs it.
        limits: When training ends.
    """

    def __init__(self, trainer: Trainer, limits: Limits) -> None:
        self.trainer = trainer
        self.limits = limits
        # ---- parts, made anew by each run
        self.val_loop = EvaluationLoop(trainer, "validate", inside_fit=True)
        self.batches: TrainBatches | None = None
        self.optimization: AutomaticOptimization | ManualOptimization | None = None
        self.resume = FitResume(self)
        self.plan: ValidationPlan | None = None
        # ---- state
        self.progress = FitProgress()
        self.metrics = MetricStore(is_training=True)
        self.batch_idx = 0
        self._num_batches_of_workers: int | float | None = None  # of a run that was in other processes
        self.epoch_of_last_load = -1
        self._told_minima = False
        self._epoch_is_profiled = False
        self._agreement: SignalAgreement | None = None
        self._last_is_uneven = False
        self.told: set[str] = set()  # of what the user was warned in this run
        self._stopped_for = ""
        self.validation: BegunValidation | None = None  # that is not over
        self.rewound: BegunValidation | None = None  # left, to be repeated whole: its rows are sent again
        self._window = 1
        self._learns = True
        self._time_is_up = False  # and training ends because of it
        self._is_cut_short = False  # the epoch, by that

    # ---- the loop
    def run(self) -> None:  # noqa: C901 - the loop on one page is the point
        """Train until a limit is reached: epochs outside, batches inside."""
        if not self._prepare():
            return
        trainer, events, done = self.trainer, self.trainer.events, self.progress
        total, current = done.batches.total, done.batches.current
        store, signals, agreement = self.metrics, trainer.signals, self._agreement
        schedulers = self.schedulers
        events.on_train_start()
        self.resume.continue_interrupted()
        while not self._is_done():
            # ---- one epoch
            run_batch, to_device, window = self._begin_epoch()
            for batch, batch_idx, is_last in self._batches_of_epoch():
                # ---- one batch
                total.ready += 1
                current.ready += 1
                self.batch_idx, done.batches.is_last_batch = batch_idx, is_last
                if batch is None:
                    self._skip_batch(is_last)
                    continue
                if to_device is not None:
                    batch = to_device(batch, 0)
                store.batch, store.batch_size = batch, None
                if events.on_train_batch_start(batch, batch_idx) == SKIP_EPOCH:
                    self._skip_rest_of_epoch()
                    break
                total.started += 1
                current.started += 1
                due = window == 1 or is_last or (batch_idx + 1) % window == 0
                divisor = 1 if window == 1 else self._window_length(batch_idx, window)
                if is_last and self._last_is_uneven:
                    outputs = self._run_uneven_batch(batch, batch_idx, divisor)
                else:
                    outputs = run_batch(batch, batch_idx, due=due, divisor=divisor)
                total.processed += 1
                current.processed += 1
                schedulers.after_batch(due, is_last)
                events.on_train_batch_end(outputs, batch, batch_idx)
                total.completed += 1
                current.completed += 1
                if due and self._log_every and (store.logs_steps or agreement is not None) and self.row_is_due():
                    self._publish_row()
                if self._validates and self._validation_is_due(is_last, due) and not self.validate():
                    done.batches_that_stepped += due
                    break
                schedulers.after_validation(due)
                if due and (trainer.should_stop or self._max_steps is not None) and self._stops_inside_epoch():
                    done.batches_that_stepped += 1
                    break
                if due and (signals.received is not None if agreement is None else agreement.reached()):
                    self._obey_signal(is_last)  # saves, so as all checkpoints are before the batch is counted
                    if self._time_is_up:
                        done.batches_that_stepped += 1
                        break
                done.batches_that_stepped += due
            self._end_epoch()
        rank_zero_info(f"`Trainer.fit` stopped: {self._stopped_for}.")
        events.on_train_end()
        if self._time_is_up:
            trainer.renew_interrupted()

    # ---- before the loop
    def _prepare(self) -> bool:
        trainer = self.trainer
        self.told.clear()
        self._told_minima = self._time_is_up = self._is_cut_short = False
        self.validation = self.rewound = None
        if trainer.limit_train_batches == 0:
            return False
        self.epoch_of_last_load = -1 if self.batches is None else self.epoch_of_last_load
        self.load_data()
        self.resume.classify()
        self.schedulers = SchedulerSteps(
            trainer.lr_scheduler_configs, trainer.lightning_module, self.progress, self._metrics_to_decide_by
        )
        if self._is_done(quiet=True) and not self.resume.ends_last_epoch:
            self.resume.show_finished(self.batches)  # type: ignore[arg-type]  # loaded above
            rank_zero_info(f"`Trainer.fit` stopped: {self._stopped_for}.")
            return False
        if self.validation_enabled and self.plan.epoch_is_due(self.progress.epochs.current.completed):  # type: ignore[union-attr]
            self.val_loop.load_data_again()
        self.resume.load_position(self.batches)  # type: ignore[arg-type]
        self.optimization = trainer.make_optimization()  # `on_train_start` may step, too
        is_parallel = trainer.world_size > 1
        self._log_every = trainer.log_every_n_steps
        self._agreement = SignalAgreement(trainer.strategy, trainer.signals) if is_parallel else None
        trainer.metrics.activate(self.metrics)
        to_come = self.limits.batches_to_come(self.progress, self.num_batches, window=trainer.accumulate_grad_batches)
        trainer.profiler.connect(trainer.lightning_module, num_steps=to_come)
        return True

    def resolve_max_epochs(self) -> None:
        """Settle what `max_epochs=None` means for this run."""
        self.limits = self.limits.settled(has_timer=self.trainer.has_timer)

    def load_data(self) -> None:
        """Ask for the training loader, the first time and when it is due again."""
        if self.batches is None and self._num_batches_of_workers is not None:
            return
        trainer, epoch = self.trainer, self.progress.epochs.current.completed
        every = trainer.reload_dataloaders_every_n_epochs
        if self.batches is not None and not (every and epoch - self.epoch_of_last_load >= every):
            return
        is_reload = self.batches is not None
        if self.batches is not None:
            self.batches.close()
        loader, limit = trainer.sources.train_loader()
        self.batches = TrainBatches(
            loader,
            limit=limit,
            wrap_next=trainer.profiled_next("[_TrainingEpochLoop].train_dataloader_next"),
            ranks=trainer.strategy,
        )
        self.epoch_of_last_load = epoch
        interval = self._interval(limit)
        if is_reload and self.plan is not None:  # its clock goes on
            self.plan.interval = interval
            return
        self.plan = ValidationPlan(
            interval,
            every_n_epochs=trainer.check_val_every_n_epoch,
            seconds=trainer.val_check_seconds,
            at_epoch_end=isinstance(trainer.val_check_interval, float) and trainer.val_check_interval == 1.0,
            decide=trainer.strategy.broadcast if trainer.world_size > 1 else None,
        )

    def _interval(self, num_batches: int | float) -> int | float:
        trainer = self.trainer
        return validation_interval(
            trainer.val_check_interval,
            num_batches,
            every_n_epochs=trainer.check_val_every_n_epoch,
            has_validation=trainer.limit_val_batches != 0,
        )

    def begin_anew(self) -> None:
        """Count from nothing, after an earlier run or where a checkpoint says nothing about the loops."""
        self.progress = FitProgress()
        self.resume = FitResume(self)

    def forget_data(self) -> None:
        """Let the loaders of an earlier run go."""
        if self.batches is not None:
            self.batches.close()
        self.batches = self._num_batches_of_workers = None
        self.resume = FitResume(self)  # also what a run took from its checkpoint and broke down before using it
        self.progress.micro_batch_size = None
        self.val_loop.forget_data()

    # ---- one epoch
    def _begin_epoch(self) -> tuple[Callable[..., Any], Any, int]:
        trainer, events, done, store = self.trainer, self.trainer.events, self.progress, self.metrics
        epoch = done.epochs.current.completed
        self.load_data()
        self.batches.set_epoch(epoch)  # type: ignore[union-attr]  # loaded above
        events.refresh()
        if self.resume.is_mid_epoch:
            self.resume.consume()
        else:
            store.leave_batches()
            done.epochs.increment("ready")
            events.on_train_epoch_start()
            done.epochs.increment("started")
            done.begin_epoch()
        self.optimization = trainer.make_optimization()
        self._profile_epoch(True)
        step = self.optimization.step if self._learns else self.optimization.compute
        self._run_batch = trainer.profiled("run_training_batch", step)
        self._validates = self.validation_enabled and self.plan.epoch_is_due(epoch)  # type: ignore[union-attr]
        self._max_steps = self.limits.max_steps
        self._last_is_uneven = self.batches.last_weight != 1.0  # type: ignore[union-attr]  # loaded above
        store.in_batch = True
        self._window = trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1
        self.resume.announce(self.batches, self._window)  # type: ignore[arg-type]  # loaded above
        return self._run_batch, choose_transfer(trainer), self._window

    def _batches_of_epoch(self) -> Iterable[tuple[Any, int, bool]]:
        """Return the batches to train on; none if a stop was asked for as the epoch began."""
        if self.trainer.should_stop and self._may_stop():
            self._meet()
            return ()
        batches: TrainBatches = self.batches  # type: ignore[assignment]  # an epoch has begun
        if any(logger.x_axis == "sample" for logger in self.trainer.loggers):
            return count_samples(batches, self.progress, self.trainer.strategy.data_parallel_size)
        return batches

    def _end_epoch(self) -> None:
        trainer, done = self.trainer, self.progress
        self._finish_window()
        self._sync_monitored()
        trainer.metrics.refresh()
        self.metrics.leave_batches()
        done.epochs.increment("processed")
        trainer.metrics.sync()
        trainer.events.on_train_epoch_end()
        trainer.metrics.sync()
        if not self._is_cut_short:  # what they monitor may be missing
            self.schedulers.after_epoch()
        with trainer.profile("log_metrics"):
            trainer.metrics.publish_epoch(done.batches_that_stepped - 1, trainer.current_epoch)
        trainer.metrics.refresh()
        self.metrics.reset()
        done.epochs.increment("completed")
        self._profile_epoch(False)
        self.optimization.losses.check()  # type: ignore[union-attr]
        is_told = trainer.signals.received is not None if self._agreement is None else self._agreement.reached_now()
        if is_told and self.limits.reached(done) is None and not (trainer.should_stop and self.limits.minima_met(done)):
            self._obey_signal(is_last=True)

    def _sync_monitored(self) -> None:
        """Make the last batch's values that decide something the same on all ranks, so that all decide alike."""
        if self._agreement is None or self.metrics.batch is None:  # shown with those of validation already
            return
        trainer = self.trainer
        deciding = [*trainer.callbacks, *(each for each in trainer.lr_scheduler_configs if each.reduce_on_plateau)]
        trainer.metrics.sync_steps({str(getattr(each, "monitor", "")) for each in deciding})

    def _metrics_to_decide_by(self) -> dict[str, Tensor]:
        self._sync_monitored()
        return self.trainer.callback_metrics

    def _profile_epoch(self, running: bool) -> None:
        """Measure the epoch as a whole, where there is a profiler."""
        profiler = self.trainer.profiler_or_none
        if profiler is not None and running is not self._epoch_is_profiled:
            (profiler.start if running else profiler.stop)("run_training_epoch")
            self._epoch_is_profiled = running

    def break_off(self) -> None:
        """Close what an epoch holds open when an error has ended it, and put a checkpoint taken now in order."""
        self._profile_epoch(False)
        if self.validation is not None:
            self.validation.rewind()
            self.rewound, self.validation = self.validation, None
        elif self.has_started_window:
            back_to_window_start(self, self._window)

    def release(self) -> None:
        """Let go of what the last batch left, once a run has ended."""
        if self.optimization is not None:
            self.optimization.release()

    def _finish_window(self) -> None:
        """Step on what an accumulation window holds that nobody will fill any more."""
        if self.optimization.finish_window():  # type: ignore[union-attr]  # an epoch has begun
            self.schedulers.after_batch(stepped=True, is_last=False)
            self.schedulers.after_validation(stepped=True)
            self.progress.batches_that_stepped += 1

    def _skip_rest_of_epoch(self) -> None:
        """End the epoch regularly, but without validation."""
        self.trainer.strategy.meet(
            f"skipped the rest of epoch {self.trainer.current_epoch} at batch {self.batch_idx}, as"
            " `on_train_batch_start` returned -1 there. It must return -1 on all ranks at the same batch: decide with"
            " `trainer.strategy.reduce_boolean_decision(should_skip, all=False)`"
        )
        self._finish_window()
        self.schedulers.after_batch(stepped=False, is_last=True)

    def _run_uneven_batch(self, batch: Any, batch_idx: int, divisor: int) -> Any:
        """Work on a last batch that is shorter on some ranks, weighted so that every sample counts the same."""
        self.optimization.weight = self.batches.last_weight  # type: ignore[union-attr]  # an epoch has begun
        if self.batches.last_size == 0:  # type: ignore[union-attr]  # a sample of another rank, only to keep step
            with self.trainer.metrics.unrecorded():
                return self._run_batch(batch, batch_idx, due=True, divisor=divisor)
        return self._run_batch(batch, batch_idx, due=True, divisor=divisor)

    def _skip_batch(self, is_last: bool) -> None:
        """Count a batch of None; what is due after a batch, or after the last one, is due all the same."""
        if self._agreement is not None:
            raise RuntimeError(
                f"The training dataloader yielded None on rank {self.trainer.global_rank}, but the other ranks would"
                " wait for the gradients of this one, so a batch cannot be skipped on several processes. Let the"
                " collate function drop single samples instead of whole batches."
            )
        rank_zero_warn("The training dataloader yielded None; this batch is skipped. Check the collate function.")
        for key in ("started", "processed", "completed"):
            self.progress.batches.increment(key)
        if is_last:
            self._finish_window()
        self.schedulers.after_batch(stepped=False, is_last=is_last)
        if self._validates and self._validation_is_due(is_last, due=is_last):
            self.validate()

    def _window_length(self, batch_idx: int, window: int) -> int:
        """Return how many batches the accumulation window of this batch has, shorter at the end of the epoch."""
        left = self.num_batches - (batch_idx - batch_idx % window)
        return window if math.isinf(left) else min(window, int(left))

    def row_is_due(self) -> bool:
        """Tell whether the values of this step go to the loggers."""
        trainer = self.trainer
        every = self._log_every
        return (
            (self.progress.batches_that_stepped + 1) % every == 0 or trainer.should_stop or bool(trainer.fast_dev_run)
        )

    def _publish_row(self) -> None:
        board, step = self.trainer.metrics, self.progress.batches_that_stepped
        if self._agreement is not None and (step + 1) % self._log_every == 0:
            board.sync_steps()
        with self.trainer.profile("log_metrics"):
            board.publish_step(step, self.trainer.current_epoch)
        if board.loggers and self.metrics.logs_steps:  # the row has waited for the device already
            self.optimization.losses.check()  # type: ignore[union-attr]  # an epoch has begun

    @property
    def stopped_for(self) -> str:
        """Why training has ended, as a phrase; empty before."""
        return self._stopped_for

    # ---- validation
    @property
    def validation_enabled(self) -> bool:
        """Whether this fit validates at all."""
        return self.trainer.enable_validation

    def _validation_is_due(self, is_last: bool, due: bool) -> bool:
        if self.plan.due(self.batch_idx, self.progress.batches.total.ready, is_last):  # type: ignore[union-attr]
            return True
        if due and self.trainer.should_stop and self.limits.minima_met(self.progress):  # where a stop takes effect
            self._meet()
            return True
        return False

    def validate(self) -> bool:
        """Run the validation that is due now; False if the time for training is up before it ends."""
        trainer = self.trainer
        optimization = self.optimization
        if not (isinstance(optimization, AutomaticOptimization) and optimization.window_batches):
            trainer.lightning_module.on_validation_model_zero_grad()
        self._sync_monitored()
        while not self._ran_through():
            self._obey_signal(is_last=False)
            if self._time_is_up:
                return False
        self.metrics.batch = None  # what was logged in it gives way to what validation logged
        self.plan.ran()  # type: ignore[union-attr]  # made with the data
        return True

    def _ran_through(self) -> bool:
        """Run a validation; False if a signal ended it: then all is as it was before, for a checkpoint."""
        self.validation = BegunValidation(self)
        try:
            with self.trainer.profile("run_validation"):
                self.val_loop.run()
        except ValidationLeft:
            return False
        self.validation = None
        return True

    def _obey_signal(self, is_last: bool) -> None:
        """Do what a signal asks for, or let the time limit end training here."""
        trainer, validation, self.validation = self.trainer, self.validation, None
        time_is_up = trainer.signals.received == TIME_IS_UP
        if time_is_up and not self._may_stop():
            return
        if validation is not None:
            validation.rewind()
        self.rewound = validation
        trainer.obey_signal()
        self.rewound = None
        if validation is not None:
            validation.count_batch()
        self._time_is_up, self._is_cut_short = time_is_up, time_is_up and not is_last

    # ---- what a checkpoint interrupted
    def finish_batch(self, *, is_validated: bool = False) -> None:
        """Validate after the batch in whose last hook a checkpoint was taken, if it is due there, and do the rest."""
        self._validates = self.validation_enabled and self.plan.epoch_is_due(self.trainer.current_epoch)  # type: ignore[union-attr]
        self.batch_idx = self.progress.batches.current.processed - 1
        done, window = self.progress, self.trainer.accumulate_grad_batches
        is_counted = done.batches.is_last_batch or done.batches.current.processed % window == 0
        if not is_validated and self._validates and self._validation_is_due(done.batches.is_last_batch, due=True):
            done.batches_that_stepped -= is_counted  # as when the batch is not over: where validation logs
            ran_through = self.validate()
            done.batches_that_stepped += is_counted
            if not ran_through:
                return
        self.schedulers.after_validation(stepped=True)

    def finish_epoch(self) -> None:
        """End the epoch in whose last step a checkpoint was taken."""
        self._begin_epoch()
        self._end_epoch()

    # ---- when to stop
    def _is_done(self, *, quiet: bool = False) -> bool:
        """Tell at the border of an epoch whether training is over, and keep the reason."""
        trainer, done = self.trainer, self.progress
        if self.num_batches == 0:
            self._stopped_for = "there are no training batches"
            return True
        if (reason := self.limits.reached(done)) is not None:
            self._stopped_for = reason
            return True
        if not quiet and trainer.should_stop and self._may_stop():
            self._meet()
            return True
        return False

    def _stops_inside_epoch(self) -> bool:
        if (reason := self.limits.steps_reached(self.progress)) is not None:
            self._stopped_for = reason
            return True
        if self.trainer.should_stop and self._may_stop():
            self._meet()
            return True
        return False

    def _meet(self) -> None:
        """Make sure that all ranks stop here; one that goes on would wait for the others until its time runs out."""
        self.trainer.strategy.meet(
            f"stopped training after {self.progress.global_step} optimizer steps, as `trainer.should_stop` was set"
            " there. It must be set on all ranks at the same step: decide with"
            " `trainer.strategy.reduce_boolean_decision(should_stop, all=False)`"
        )

    def _may_stop(self) -> bool:
        if self.limits.minima_met(self.progress):
            self._stopped_for = "its time is up" if self._time_is_up else "`trainer.should_stop` was set"
            return True
        if not self._told_minima:
            rank_zero_info(
                f"A stop was asked for, but `min_epochs={self.limits.min_epochs}` or"
                f" `min_steps={self.limits.min_steps}`"
                " is not met yet; training goes on."
            )
            self._told_minima = True
        return False

    # ---- what callbacks change
    def learn(self, learns: bool) -> None:
        """Say, before an epoch begins, whether its batches are learned from or only go through the model."""
        self._learns = learns

    def follow_schedulers(self) -> None:
        """Step the schedulers that the Trainer has now, from the epoch on that begins."""
        self.schedulers.follow(self.trainer.lr_scheduler_configs)

    # ---- what others read
    @property
    def num_batches(self) -> int | float:
        """Training batches of an epoch; infinite while not loaded, or for loaders without length."""
        if self.batches is not None:
            return self.batches.num_batches
        return math.inf if self._num_batches_of_workers is None else self._num_batches_of_workers

    def ran_in_workers(self, num_batches: int | float) -> None:
        """Note the training batches of a run whose data other processes have loaded."""
        self._num_batches_of_workers = num_batches

    @property
    def max_epochs(self) -> int | None:
        """The bound on epochs: -1 is endless, None not settled yet."""
        return -1 if self.limits.endless else self.limits.max_epochs

    @max_epochs.setter
    def max_epochs(self, value: int | None) -> None:
        self.limits = self.limits.with_max_epochs(value)

    @property
    def max_steps(self) -> int:
        """The bound on optimizer steps, -1 for none."""
        return -1 if self.limits.max_steps is None else self.limits.max_steps

    @property
    def min_epochs(self) -> int:
        """Epochs before which a request to stop is not obeyed."""
        return self.limits.min_epochs

    @property
    def min_steps(self) -> int:
        """Optimizer steps before which a request to stop is not obeyed."""
        return self.limits.min_steps

    @property
    def global_step(self) -> int:
        """Completed optimizer steps."""
        return self.progress.global_step

    @property
    def epoch_progress(self) -> Progress:
        """Counters of epochs."""
        return self.progress.epochs

    @property
    def batch_progress(self) -> Progress:
        """Counters of training batches."""
        return self.progress.batches

    @property
    def total_batch_idx(self) -> int:
        """Index of the current batch over all epochs."""
        return self.progress.batches.total.ready - 1

    @property
    def batches_that_stepped(self) -> int:
        """Batches on which an optimizer step was due: the loggers' x axis."""
        return self.progress.batches_that_stepped

    @property
    def _batches_that_stepped(self) -> int:  # published callbacks and loggers read this name
        return self.progress.batches_that_stepped

    @property
    def is_last_batch(self) -> bool:
        """Whether the current batch is the last of its epoch."""
        return self.progress.batches.is_last_batch

    @property
    def has_started_window(self) -> bool:
        """Whether gradients of an unfinished accumulation window are held."""
        return isinstance(self.optimization, AutomaticOptimization) and self.optimization.window_batches > 0

    @property
    def restarted_mid_epoch(self) -> bool:
        """Whether the run goes on inside an epoch of a checkpoint."""
        return self.resume.is_mid_epoch

    @property
    def epoch_loop(self) -> FitLoop:
        """The same object: Lightning has a second loop here, whose `batch_progress`, `val_loop` … programs read."""
        return self

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward for `LightningModule.manual_backward`."""
        if not isinstance(self.optimization, ManualOptimization):
            raise RuntimeError("`manual_backward` works only inside `training_step`, while `Trainer.fit` runs.")
        self.optimization.backward(loss, *args, **kwargs)

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return counters, and the states of loaders that have one, under Lightning's keys."""
        states = self.batches.loader_states() if self.batches is not None else []
        return {
            "state_dict": {"combined_loader": states} if states else {},
            **self.progress.state_dict(),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": self.val_loop.progress_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, or what Lightning wrote."""
        self.progress.load_state_dict(state)
        self.val_loop.progress.load_state_dict(state["epoch_loop.val_loop.batch_progress"])
        self.resume.loaded(state)

    def position_state(self) -> dict[str, Any]:
        """Return where the training data stands, and what the unfinished epoch has logged."""
        return self.resume.position_state()

    def load_position_state(self, state: dict[str, Any]) -> None:
        """Take back what `position_state` returned."""
        self.resume.load_position_state(state)
