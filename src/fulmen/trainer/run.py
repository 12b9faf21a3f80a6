"""One run of the Trainer from set-up to teardown, in order.

attach module and data -> configure_callbacks -> checks
environment -> prepare_data -> loggers -> setup hooks -> configure_model
load checkpoint: module, datamodule, callbacks, precision
strategy: convert, move, configure_optimizers
fit: on_fit_start -> load checkpoint: counters, optimizers, schedulers
the loop
teardown, whatever happened
"""

from __future__ import annotations

import logging
import pickle
import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fulmen.checkpoint.auto import explaining_misfit, is_asked_for
from fulmen.checkpoint.contents import (
    OWN_KEY,
    restore_callbacks,
    restore_loops,
    restore_modules,
    restore_optimizers_and_schedulers,
    restore_precision,
)
from fulmen.checkpoint.paths import resolve_ckpt_path
from fulmen.checkpoint.run_record import restore_log, send_owed_row
from fulmen.core.hooks import DataHooks, ModelHooks
from fulmen.core.module import LightningModule
from fulmen.core.whereabouts import whereabouts
from fulmen.data.worker_report import end_workers_behind, explain_worker_failure
from fulmen.loggers.params import merge_hparams
from fulmen.strategies.fault_watch import FaultWatch
from fulmen.strategies.late_weights import fill_whole_module
from fulmen.strategies.random_numbers import draw_alike
from fulmen.trainer.checks import check_callbacks, check_run
from fulmen.trainer.defaults import add_module_callbacks
from fulmen.trainer.event_table import owner_label
from fulmen.trainer.requeue import RequeuedException, requeue_signal, requeued_checkpoint
from fulmen.trainer.states import RunningStage, TrainerFn, TrainerStatus
from fulmen.utilities.exceptions import DamagedFileError, SIGTERMException
from fulmen.utilities.files import problem_without_meta
from fulmen.utilities.migration import migrate_checkpoint
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.utilities.seed import isolate_rng
from fulmen.utilities.warnings import PossibleUserWarning

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["abort", "check_sanity", "configure_model", "finish", "run", "set_up"]

log = logging.getLogger(__name__)
_FIRST_STAGE = {
    TrainerFn.FITTING: RunningStage.TRAINING,
    TrainerFn.VALIDATING: RunningStage.VALIDATING,
    TrainerFn.TESTING: RunningStage.TESTING,
    TrainerFn.PREDICTING: RunningStage.PREDICTING,
}


def run(
    trainer: Trainer, module: LightningModule, *, ckpt_path: Any, weights_only: bool | None, model_provided: bool
) -> Any:
    """Do what fit, validate, test or predict was called for; `trainer.state.fn` says which."""
    fn = trainer.state.fn
    trainer.state.is_set_up = None
    trainer.state.stage, trainer.state.status = _FIRST_STAGE[fn], TrainerStatus.RUNNING  # type: ignore[index]  # a method was called
    try:
        set_up(trainer, module, ckpt_path=ckpt_path, weights_only=weights_only, model_provided=model_provided)
        results: Any = None
        if fn == TrainerFn.FITTING:
            check_sanity(trainer)
            trainer.enter_stage(RunningStage.TRAINING)
            with ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(True))
                stack.enter_context(torch.autograd.set_detect_anomaly(trainer.detect_anomaly))
                trainer.fit_loop.run()
        elif fn == TrainerFn.PREDICTING:
            results = trainer.predict_loop.run()
        else:
            results = (trainer.validate_loop if fn == TrainerFn.VALIDATING else trainer.test_loop).run()
        _share_late_signal(trainer)
        finish(trainer)
    except KeyboardInterrupt as interrupt:
        if trainer.signals.received != signal.SIGINT:  # else that was said
            rank_zero_info("Interrupted (Ctrl-C): finishing cleanly. Press Ctrl-C again to stop at once.")
        trainer.state.status = TrainerStatus.INTERRUPTED
        abort(trainer, interrupt)
        raise SystemExit(128 + signal.SIGINT) from interrupt
    except BaseException as error:
        trainer.signals.leave_loops()
        trainer.state.status = TrainerStatus.INTERRUPTED
        place = whereabouts(trainer)
        explained = explain_worker_failure(error, epoch=place.epoch, train_batch_idx=place.batch_idx)
        try:
            abort(trainer, explained)
            if explained is not error:
                raise explained from error
            raise
        finally:
            end_workers_behind(error)
            del explained  # an error that refers to itself would stay until garbage is collected
    if (late := trainer.signals.ending) is not None:  # it came in the last steps, after which nothing was left to save
        raise SystemExit(128 + late) if late == signal.SIGINT else SIGTERMException(128 + late)
    return results


# ---- before the loop
def set_up(
    trainer: Trainer, module: LightningModule, *, ckpt_path: Any, weights_only: bool | None, model_provided: bool
) -> None:
    """Bring module, data, strategy and checkpoint to the point where the loop can begin."""
    fn, strategy, events = str(trainer.state.fn.value), trainer.strategy, trainer.events  # type: ignore[union-attr]
    launcher = strategy.launcher
    trainer.signals.begin(requeue_signal=requeue_signal(trainer), forward=None if launcher is None else launcher.kill)
    trainer.attach(module)
    _configure_callbacks(trainer, module)
    check_run(trainer, module)
    if fn == "fit":
        trainer.fit_loop.resolve_max_epochs()
    strategy.setup_environment()
    draw_alike(strategy)
    trainer.settle_log_dir()
    rank = trainer.local_rank if trainer.world_size > 1 else None
    trainer.profiler.setup(stage=fn, local_rank=rank, log_dir=trainer.log_dir)
    events.build()
    _prepare_data(trainer)
    for logger in trainer.loggers:
        _ = getattr(logger, "experiment", None)  # made now, so that run directories exist
    trainer.notes.begin(trainer)
    strategy.barrier("before_setup")
    trainer.state.is_set_up = True
    events.setup(trainer.state.fn)  # the enum, which equals its text
    strategy.barrier("after_setup")
    events.refresh()
    configure_model(trainer)
    checkpoint = _load_checkpoint(trainer, ckpt_path, weights_only, model_provided)
    _fill_empty_layers(trainer, checkpoint)
    is_late = strategy.restore_checkpoint_after_setup or strategy.precision_plugin.changes_state_dict
    if checkpoint is not None and not is_late:
        with explaining_misfit(trainer, ckpt_path):
            _restore_what_every_stage_uses(trainer, checkpoint)
    _restore_record(trainer, checkpoint, ckpt_path)
    trainer.begin_metrics()
    strategy.setup(trainer)
    if fn == "fit":
        _warn_about_eval_mode(module)
        events.on_fit_start()
    _log_hyperparameters(trainer)
    if checkpoint is not None:
        with explaining_misfit(trainer, ckpt_path):
            if is_late:
                _restore_what_every_stage_uses(trainer, checkpoint)
                if fn == "fit":
                    _let_callbacks_change_optimizers(trainer)
            restore_loops(trainer, checkpoint)
            if fn == "fit":
                restore_optimizers_and_schedulers(trainer, checkpoint)
                trainer.keep_checkpoint(checkpoint)
                send_owed_row(trainer, checkpoint.get(OWN_KEY, {}))
    trainer.signals.install(fn)
    draw_alike(strategy)  # again: what was set up may have drawn on one rank only
    if fn == "fit":
        module.zero_grad()


def _configure_callbacks(trainer: Trainer, module: LightningModule) -> None:
    trainer.scope.hook = "configure_callbacks"
    returned = module.configure_callbacks()
    trainer.scope.hook = None
    own = list(returned) if isinstance(returned, (list, tuple)) else [returned]
    check_callbacks(own)
    trainer.callbacks[:] = add_module_callbacks(trainer.callbacks, own)
    check_callbacks(trainer.callbacks)
    for callback in trainer.callbacks:
        callback.log, callback.log_dict = module.log, module.log_dict  # type: ignore[attr-defined]  # as users expect


def _prepare_data(trainer: Trainer) -> None:
    for owner in (trainer.datamodule, trainer.lightning_module):
        if owner is None or not is_overridden("prepare_data", owner, DataHooks):
            continue
        may_run = trainer.local_rank == 0 if owner.prepare_data_per_node else trainer.is_global_zero
        if may_run:
            trainer.scope.hook = "prepare_data"
            with trainer.profile(f"{owner_label(owner)}.prepare_data"):
                owner.prepare_data()
            trainer.scope.hook = None
        trainer.strategy.barrier("prepare_data")


def configure_model(trainer: Trainer) -> None:
    """Let the module make the layers that it makes late."""
    module, strategy = trainer.lightning_module, trainer.strategy
    for hook in ("configure_sharded_model", "configure_model"):
        if is_overridden(hook, module, ModelHooks):
            trainer.scope.hook = hook
            with (
                strategy.tensor_init_context(),
                strategy.model_sharded_context(),
                trainer.precision_plugin.module_init_context(),
            ):
                getattr(module, hook)()
            trainer.scope.hook = None


def _fill_empty_layers(trainer: Trainer, checkpoint: dict[str, Any] | None) -> None:
    """Give layers that were made on the meta device memory and values."""
    strategy = trainer.strategy
    if not strategy.has_dtensors:  # else each layer is filled when it is divided
        names = () if checkpoint is None else checkpoint.get("state_dict", ())  # DeepSpeed has them in its folder
        fill_whole_module(trainer.lightning_module, strategy.root_device, names)


def _load_checkpoint(
    trainer: Trainer, ckpt_path: Any, weights_only: bool | None, model_provided: bool
) -> dict[str, Any] | None:
    fn = str(trainer.state.fn.value)  # type: ignore[union-attr]  # a method was called
    found: tuple[Any, Exception | None] = None, None
    if trainer.is_global_zero:  # the newest file is the same for all ranks only if one looks
        try:
            path = requeued_checkpoint(trainer) or resolve_ckpt_path(
                trainer, ckpt_path, fn=fn, model_provided=model_provided, set_by_user=trainer.ckpt_path_of_user
            )
            found = path, None
        except Exception as error:
            found = None, _sendable(error)
    path, fault = trainer.strategy.broadcast(found)
    if fault is not None:  # on all ranks, so that a program that catches it goes on with all of them
        raise fault
    trainer.note_ckpt_path(path)
    if path is None:
        return None
    if problem := problem_without_meta(path):
        raise DamagedFileError(problem)
    rank_zero_info(f"Restoring from the checkpoint at {path}")
    checkpoint, _ = migrate_checkpoint(trainer.strategy.load_checkpoint(path, weights_only=weights_only))
    return checkpoint


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a library, with a constructor that needs more than a text
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _restore_what_every_stage_uses(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    restore_modules(trainer, checkpoint)
    restore_callbacks(trainer, checkpoint)
    restore_precision(trainer, checkpoint)


def _let_callbacks_change_optimizers(trainer: Trainer) -> None:
    """Let callbacks give the optimizers the groups of their state, which they have got after `on_fit_start`."""
    for callback in trainer.callbacks:
        if (restore := getattr(callback, "restore_optimizers", None)) is not None:
            restore(trainer, trainer.lightning_module)


def _restore_record(trainer: Trainer, checkpoint: dict[str, Any] | None, ckpt_path: Any) -> None:
    """Begin a fit in the record of runs, and bring the logs to where they were when the checkpoint was written."""
    if trainer.state.fn != TrainerFn.FITTING:
        return
    own = (checkpoint or {}).get(OWN_KEY, {})
    trainer.run_record.begin(own)
    if checkpoint is not None:
        restore_log(trainer, own)
    if checkpoint is None and is_asked_for(trainer, ckpt_path):  # an attempt that got nowhere
        for logger in trainer.loggers:
            logger.begin_anew()


def _warn_about_eval_mode(module: LightningModule) -> None:
    in_eval = sum(not child.training for child in module.modules())
    if in_eval:
        rank_zero_warn(
            f"{in_eval} submodules are in evaluation mode at the start of training and stay so: dropout and batch norm"
            " do not train there. To train them, call `model.train()` before `fit`.",
            category=PossibleUserWarning,
        )


def _log_hyperparameters(trainer: Trainer) -> None:
    if not trainer.loggers or not trainer.enable_autolog_hparams:
        return
    module, datamodule = trainer.lightning_module, trainer.datamodule
    of_module = module.hparams_initial if module._log_hyperparams else None
    of_datamodule = datamodule.hparams_initial if datamodule is not None and datamodule._log_hyperparams else None
    merged = merge_hparams(of_module, of_datamodule)
    for logger in trainer.loggers:
        if merged:
            logger.log_hyperparams(merged)
        logger.log_graph(module)
        logger.save()


# ---- the sanity check
def check_sanity(trainer: Trainer) -> None:
    """Run a few validation batches before training, so that mistakes there do not show after an epoch."""
    loop, fit_loop, events = trainer.fit_loop.val_loop, trainer.fit_loop, trainer.events
    if not trainer.enable_validation or trainer.num_sanity_val_steps == 0 or fit_loop.restarted_mid_epoch:
        return
    stage_before = trainer.state.stage
    if trainer.ckpt_path is None:
        loop.progress.reset()
    counted = loop.progress_state()  # the check does not count
    with isolate_rng():
        trainer.enter_stage(RunningStage.SANITY_CHECKING)
        events.on_sanity_check_start()
        loop.load_data()
        loop.run(max_batches=[min(trainer.num_sanity_val_steps, n) for n in loop.max_batches])
        events.on_sanity_check_end()
    trainer.begin_metrics()
    loop.progress.load_state_dict(counted)
    trainer.state.stage = stage_before


# ---- after the loop
def _share_late_signal(trainer: Trainer) -> None:
    """Let all ranks leave because of a signal that came to one after the last step at which they compared."""
    if trainer.world_size > 1:
        received = trainer.signals.ending
        latest = trainer.strategy.agree([-1 if received is None else received], op="max")[0]
        if latest != -1:
            trainer.signals.received = latest


def finish(trainer: Trainer) -> None:
    """Take everything down after a run that went through."""
    events = trainer.events
    trainer.signals.leave_loops()
    for step in _release_steps(trainer):
        step()
    if trainer.state.fn == TrainerFn.FITTING:
        events.on_fit_end()
    with ExitStack() as stack:  # all of it, in the opposite order, whichever fails
        for logger in reversed(trainer.loggers):
            stack.callback(logger.finalize, "success")
        for step in reversed(_teardown_steps(trainer)):
            stack.callback(step)
        trainer.state.is_set_up = False
    trainer.profiler.describe()
    trainer.signals.restore()
    trainer.state.status = TrainerStatus.FINISHED
    trainer.state.stage = None
    trainer.notes.end(trainer)


def abort(trainer: Trainer, error: BaseException) -> None:
    """Take everything down after an error; an error while doing so is reported, and does not hide the first."""
    trainer.signals.leave_loops()
    if not trainer.signals.is_obeyed:
        trainer.strategy.report_fault(error)
    elif (watch := FaultWatch.running()) is not None:
        watch.leave()
    status = "finished" if isinstance(error, RequeuedException) else "failed"
    steps: list[Callable[[], Any]] = [
        trainer.fit_loop.break_off,
        *_in_hook(trainer, "on_exception", error),
        partial(trainer.strategy.on_exception, error),
    ]
    if trainer.state.is_set_up is not False:  # the error came before the end
        steps += [partial(logger.finalize, status) for logger in trainer.loggers]
        steps += _release_steps(trainer)
        steps += _teardown_steps(trainer)
        trainer.state.is_set_up = False
    steps += [trainer.profiler.describe, partial(trainer.notes.end, trainer, error)]
    try:
        for step in steps:
            _try(step, error)
    finally:  # a second Ctrl-C
        trainer.signals.restore()
        trainer.scope.hook = None
        trainer.state.stage = None


def _try(step: Callable[[], Any], first: BaseException) -> None:
    try:
        step()
    except (Exception, SystemExit) as second:
        text = f"While cleaning up after {type(first).__name__}, another error: {type(second).__name__}: {second}"
        try:
            rank_zero_warn(text)
        except Warning:  # warnings are errors here, but this one must not hide the first error
            log.error(text)


def _release_steps(trainer: Trainer) -> list[Callable[[], Any]]:
    """Return what gives back what a run held, step by step, as the metrics of a broken run can fail once more."""
    steps: list[Callable[[], Any]] = [
        partial(trainer.keep_checkpoint, None),  # of a run that ended before its random state was due
        trainer.fit_loop.release,
        trainer.end_metrics,
    ]
    if trainer.strategy.lightning_module is not None:
        steps.append(trainer.strategy.teardown)
    return steps


def _teardown_steps(trainer: Trainer) -> list[Callable[[], Any]]:
    """Return the `teardown` hooks one by one, if there was a `setup`, and the profiler's."""
    steps = _in_hook(trainer, "teardown", trainer.state.fn) if trainer.state.is_set_up else []
    stage = str(trainer.state.fn.value)  # type: ignore[union-attr]  # a method was called
    return [*steps, partial(trainer.profiler.teardown, stage=stage)]


def _in_hook(trainer: Trainer, name: str, *args: Any) -> list[Callable[[], Any]]:
    def call(hook: Callable[..., Any]) -> None:
        trainer.scope.hook = name
        hook(*args)
        trainer.scope.hook = None

    return [partial(call, hook) for hook in trainer.events.each(name)]
