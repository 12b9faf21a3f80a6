"""The Trainer: settings in, `fit`, `validate`, `test` and `predict` out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch.optim import Optimizer

from fulmen.callbacks.timer import Timer
from fulmen.checkpoint.contents import dump_checkpoint, restore_rng
from fulmen.checkpoint.run_record import RunRecord
from fulmen.core.callback import Callback
from fulmen.core.datamodule import LightningDataModule
from fulmen.core.events import EVENTS
from fulmen.core.module import LightningModule
from fulmen.core.optimizer import LightningOptimizer, parse_optimizers
from fulmen.engine.loaders import parse_limit
from fulmen.engine.resolve import resolve_strategy
from fulmen.engine.torch_flags import set_torch_flags
from fulmen.loggers.logger import DummyLogger, Logger
from fulmen.loops.clock import read_clock
from fulmen.loops.evaluate import EvaluationLoop
from fulmen.loops.fit import FitLoop
from fulmen.loops.micro_batches import MicroBatchedOptimization
from fulmen.loops.optimization import AutomaticOptimization, ManualOptimization
from fulmen.loops.predict import PredictionLoop
from fulmen.loops.transfer import TransferHooks, transfer_hooks
from fulmen.metrics.deferred import DeferringBoard
from fulmen.metrics.history import History
from fulmen.metrics.objects import synchronize_over
from fulmen.metrics.publish import MetricBoard, Scope
from fulmen.metrics.store import MetricStore
from fulmen.profilers.base import PassThroughProfiler
from fulmen.profilers.profiler import Profiler
from fulmen.strategies.strategy import Strategy
from fulmen.trainer import arguments
from fulmen.trainer.carrier import TrainerCarrier
from fulmen.trainer.checks import check_callbacks, check_module
from fulmen.trainer.defaults import with_defaults
from fulmen.trainer.event_table import EventTable, nothing, owner_label
from fulmen.trainer.interruption import launch, obey_signal, renew_interrupted
from fulmen.trainer.profiling import choose_profiler
from fulmen.trainer.run import run
from fulmen.trainer.run_notes import RunNotes
from fulmen.trainer.signals import Signals
from fulmen.trainer.sources import Sources
from fulmen.trainer.states import RunningStage, TrainerFn, TrainerState
from fulmen.trainer.view import TrainerView, stepping_batches
from fulmen.utilities.compile import from_compiled, is_compiled
from fulmen.utilities.duration import parse_duration
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.planning.plan import Plan
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.layer_sync import LayerSync
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS, LRSchedulerConfig

    _Plugin = Precision | ClusterEnvironment | CheckpointIO | LayerSync

__all__ = ["Trainer"]

_PATH = str | Path
_UNLIMITED = 1.0


class Trainer(TrainerView):
    """Runs a `LightningModule`: devices, precision, loops, checkpoints, logs.

    Every argument is keyword-only; one that is not passed is looked up in the environment as `PL_TRAINER_<ARGUMENT>`.

    Args:
        accelerator: `"auto"`, `"cpu"`, `"cuda"`, `"mps"`, `"gpu"`, a registered name, or an `Accelerator`.
        strategy: `"auto"`, a registered name, or a `Strategy`.
        devices: How many devices, or which: an int, a list of indices, `"auto"`.
        num_nodes: Number of machines.
        precision: `"32-true"` (default), `"64-true"`, `"16-true"`, `"bf16-true"`, `"16-mixed"`, `"bf16-mixed"`.
        logger: True (TensorBoard if installed, else CSV), False, a `Logger`, or several.
        callbacks: One callback or a list.
        fast_dev_run: Run this many batches of everything (True: 1), without loggers and checkpoints.
        max_epochs: Stop after so many epochs; -1 never; None is 1000, or no bound with `max_steps` or `max_time`.
        min_epochs: Obey no request to stop before.
        max_steps: Stop after so many optimizer steps; -1 is no bound.
        min_steps: Obey no request to stop before.
        max_time: Stop after a time: `"DD:HH:MM:SS"`, a timedelta, or a dict of its arguments.
        limit_train_batches: Batches per epoch, as a count (int) or fraction (float).
        limit_val_batches: Validation batches; 0 switches validation off.
        limit_test_batches: Test batches.
        limit_predict_batches: Prediction batches.
        overfit_batches: Train and validate on so many batches only, in a fixed order.
        val_check_interval: Validate every so many batches (int), fraction of an epoch (float), or time.
        check_val_every_n_epoch: Validate only every n-th epoch; None counts batches over epochs.
        num_sanity_val_steps: Validation batches before training; -1 is all, 0 none; 2 by default.
        log_every_n_steps: Steps between rows of training metrics; 50 by default, 0 is never.
        enable_checkpointing: Whether to save checkpoints.
        enable_progress_bar: Whether to show progress.
        enable_model_summary: Whether to print a table of the model.
        accumulate_grad_batches: Batches per optimizer step; `"auto"`: one, which is computed in smaller parts, with the
            same gradient, once it does not fit into memory.
        gradient_clip_val: Bound for clipping.
        gradient_clip_algorithm: `"norm"` (default) or `"value"`.
        deterministic: True, False, or `"warn"`: `torch.use_deterministic_algorithms`.
        benchmark: `torch.backends.cudnn.benchmark`.
        inference_mode: Use `torch.inference_mode` (else `no_grad`) in validate, test and predict.
        use_distributed_sampler: Shard the data of several processes.
        profiler: `"simple"`, `"advanced"`, `"pytorch"`, `"step"`, `"xla"`, or a `Profiler`.
        detect_anomaly: Find the operation that made a NaN in the gradients; slow.
        barebones: Switch everything off that costs time, to measure the loop.
        plugins: A precision, checkpoint IO, cluster environment or layer sync, or several.
        sync_batchnorm: Compute batch norm over all processes.
        reload_dataloaders_every_n_epochs: Ask for new dataloaders every n epochs.
        default_root_dir: Where logs and checkpoints go; the working directory by default.
        enable_autolog_hparams: Log the hyperparameters at the start of every run.
        model_registry: Name in a model registry.

    Raises:
        MisconfigurationException: An argument has no accepted value, or two exclude each other.
        ValueError: The accelerator, strategy or precision is not known.
        TypeError: An argument has a wrong type.

    Example::

        trainer = Trainer(max_epochs=3)
        trainer.fit(model, train_loader, val_loader)
    """

    @arguments.defaults_from_env
    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: Any | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int | Literal["auto"] = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: _Plugin | list[_Plugin] | None = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: _PATH | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
    ) -> None:
        arguments.check_flags(
            enable_checkpointing=enable_checkpointing, enable_progress_bar=enable_progress_bar,
            enable_model_summary=enable_model_summary, inference_mode=inference_mode, detect_anomaly=detect_anomaly,
            use_distributed_sampler=use_distributed_sampler, barebones=barebones, sync_batchnorm=sync_batchnorm,
            enable_autolog_hparams=enable_autolog_hparams,
        )  # fmt: skip
        self.barebones = barebones
        self.fast_dev_run = arguments.check_fast_dev_run(fast_dev_run)
        if barebones:
            arguments.check_barebones(
                {
                    "enable_checkpointing": enable_checkpointing, "logger": logger,
                    "enable_progress_bar": enable_progress_bar, "log_every_n_steps": log_every_n_steps,
                    "enable_model_summary": enable_model_summary, "num_sanity_val_steps": num_sanity_val_steps,
                    "fast_dev_run": fast_dev_run, "detect_anomaly": detect_anomaly, "profiler": profiler,
                }
            )  # fmt: skip
            enable_checkpointing = logger = enable_progress_bar = enable_model_summary = False
            log_every_n_steps = num_sanity_val_steps = 0

        # ---- settings
        self._default_root_dir = arguments.parse_root_dir(default_root_dir)
        limits = arguments.make_limits(max_epochs, min_epochs, max_steps, min_steps)
        self.accumulate_grad_batches = arguments.check_accumulate(accumulate_grad_batches)
        self.splits_batches = accumulate_grad_batches == "auto"
        self.gradient_clip_val, self.gradient_clip_algorithm = arguments.check_clipping(
            gradient_clip_val, gradient_clip_algorithm
        )
        self.limit_train_batches = parse_limit(_or(limit_train_batches, _UNLIMITED), "limit_train_batches")
        self.limit_val_batches = parse_limit(_or(limit_val_batches, _UNLIMITED), "limit_val_batches")
        self.limit_test_batches = parse_limit(_or(limit_test_batches, _UNLIMITED), "limit_test_batches")
        self.limit_predict_batches = parse_limit(_or(limit_predict_batches, _UNLIMITED), "limit_predict_batches")
        self.overfit_batches = parse_limit(overfit_batches, "overfit_batches")
        self.check_val_every_n_epoch = arguments.check_count(
            "check_val_every_n_epoch", check_val_every_n_epoch, least=1, none_allowed=True
        )
        self.val_check_interval, self.val_check_seconds = arguments.parse_val_check_interval(
            val_check_interval, self.check_val_every_n_epoch
        )
        sanity = arguments.check_count("num_sanity_val_steps", _or(num_sanity_val_steps, 2), least=-1)
        self.num_sanity_val_steps: int | float = float("inf") if sanity == -1 else sanity
        self.log_every_n_steps: int = arguments.check_count("log_every_n_steps", _or(log_every_n_steps, 50))
        self.reload_dataloaders_every_n_epochs: int = arguments.check_count(
            "reload_dataloaders_every_n_epochs", reload_dataloaders_every_n_epochs
        )
        self.detect_anomaly = detect_anomaly
        self.inference_mode = inference_mode
        self.use_distributed_sampler = use_distributed_sampler
        self.enable_autolog_hparams = enable_autolog_hparams
        self.model_registry = None if model_registry is None else str(model_registry).split(":", 1)[0]
        set_torch_flags(deterministic=deterministic, benchmark=benchmark)

        # ---- parts
        self._strategy = resolve_strategy(
            accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=num_nodes, precision=precision,
            plugins=plugins, sync_batchnorm=sync_batchnorm,
        )  # fmt: skip
        self.scope = Scope()
        self.metrics = (DeferringBoard if self.splits_batches else MetricBoard)(self.scope, muted=barebones)
        self.loggers = arguments.choose_loggers(logger, self._default_root_dir)
        self.profiler: Profiler = choose_profiler(profiler)
        self.callbacks: list[Callback] = with_defaults(
            callbacks,
            checkpointing=enable_checkpointing is not False,
            progress_bar=enable_progress_bar is not False,
            model_summary=enable_model_summary is not False,
            max_time=None if max_time is None else parse_duration(max_time, setting="Trainer(max_time=...)"),
        )
        check_callbacks(self.callbacks)
        self.sources = Sources(self)
        self.events = EventTable(self)
        self.signals = Signals()

        # ---- state
        self.state = TrainerState()
        self.history = History(self.state)
        self.notes = RunNotes()
        self.should_stop = False
        self.fit_loop = FitLoop(self, limits)
        self.metrics.clock = partial(read_clock, self.fit_loop)
        self.validate_loop = EvaluationLoop(self, "validate")
        self.test_loop = EvaluationLoop(self, "test")
        self.predict_loop = PredictionLoop(self)
        self._ckpt_path: _PATH | None = None
        self._ckpt_path_of_user: _PATH | None = None
        self._checkpoint: dict[str, Any] | None = None
        self.run_record = RunRecord()
        self._log_dir_of_run = None
        self._wrapped_optimizers: list[LightningOptimizer] = []
        self._transfer_hooks: TransferHooks | None = None
        self._apply_overfit()
        self._apply_fast_dev_run()

    def _apply_overfit(self) -> None:
        if self.overfit_batches > 0:
            self.limit_train_batches = self.limit_val_batches = self.overfit_batches

    def _apply_fast_dev_run(self) -> None:
        if not self.fast_dev_run:
            return
        num_batches = int(self.fast_dev_run)
        if self.overfit_batches == 0:
            self.limit_train_batches = self.limit_val_batches = num_batches
        self.limit_test_batches = self.limit_predict_batches = num_batches
        self.num_sanity_val_steps = 0
        self.val_check_interval, self.val_check_seconds, self.check_val_every_n_epoch = 1.0, None, 1
        self.fit_loop.limits = arguments.make_limits(1, None, num_batches, None)
        self.loggers = [DummyLogger()] if self.loggers else []

    # ---- what it is for
    def fit(
        self,
        model: LightningModule,
        train_dataloaders: TRAIN_DATALOADERS | LightningDataModule | None = None,
        val_dataloaders: EVAL_DATALOADERS | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: _PATH | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train a module.

        Args:
            model: The module.
            train_dataloaders: An iterable of batches, a (nested) collection of them, or a datamodule.
            val_dataloaders: One or several iterables of batches.
            datamodule: Gives the loaders instead.
            ckpt_path: Resume from this file, or from the `"best"` or `"last"` one. `"auto"`, for jobs that are
                restarted: from the newest whole checkpoint of this run and its earlier attempts, if there is one.
            weights_only: False also unpickles arbitrary objects from the checkpoint: only for files you trust.

        Raises:
            MisconfigurationException: Something that `fit` needs is missing, or settings exclude each other.
            TypeError: `model` is no LightningModule.
        """
        train_dataloaders, datamodule = _datamodule_first(train_dataloaders, datamodule)
        module = self._begin(TrainerFn.FITTING, model)
        self.sources.attach(datamodule=datamodule, train=train_dataloaders, val=val_dataloaders)
        self.should_stop = False
        self.fit_loop.forget_data()
        self._runner(module)(self, module, ckpt_path=ckpt_path, weights_only=weights_only, model_provided=True)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: EVAL_DATALOADERS | LightningDataModule | None = None,
        ckpt_path: _PATH | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate a module on validation data.

        Args:
            model: The module; by default that of the last run, with the best checkpoint's weights.
            dataloaders: One or several iterables of batches, or a datamodule.
            ckpt_path: Load the weights of this file, or of the `"best"` or `"last"` one.
            verbose: Print the results.
            datamodule: Gives the loaders instead.
            weights_only: False also unpickles arbitrary objects from the checkpoint: only for files you trust.

        Returns:
            The logged metrics, one dict per dataloader.
        """
        dataloaders, datamodule = _datamodule_first(dataloaders, datamodule)
        module = self._begin(TrainerFn.VALIDATING, model)
        self.sources.attach(datamodule=datamodule, val=dataloaders)
        self.validate_loop.forget_data()
        results: list[dict[str, float]] = self._runner(module)(
            self, module, ckpt_path=ckpt_path, weights_only=weights_only, model_provided=model is not None
        )
        return self._shown(results, "validate", verbose)

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: EVAL_DATALOADERS | LightningDataModule | None = None,
        ckpt_path: _PATH | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate a module on test data; arguments and result as for `validate`."""
        dataloaders, datamodule = _datamodule_first(dataloaders, datamodule)
        module = self._begin(TrainerFn.TESTING, model)
        self.sources.attach(datamodule=datamodule, test=dataloaders)
        self.test_loop.forget_data()
        results: list[dict[str, float]] = self._runner(module)(
            self, module, ckpt_path=ckpt_path, weights_only=weights_only, model_provided=model is not None
        )
        return self._shown(results, "test", verbose)

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: EVAL_DATALOADERS | LightningDataModule | None = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: _PATH | None = None,
        weights_only: bool | None = None,
    ) -> list[Any] | list[list[Any]] | None:
        """Run `predict_step` over data.

        Args:
            model: The module; by default that of the last run, with the best checkpoint's weights.
            dataloaders: One or several iterables of batches, or a datamodule.
            datamodule: Gives the loaders instead.
            return_predictions: False to keep nothing, where a callback writes the predictions.
            ckpt_path: Load the weights of this file, or of the `"best"` or `"last"` one.
            weights_only: False also unpickles arbitrary objects from the checkpoint: only for files you trust.

        Returns:
            One output per batch, on the CPU; a list of such lists for several dataloaders.
        """
        dataloaders, datamodule = _datamodule_first(dataloaders, datamodule)
        module = self._begin(TrainerFn.PREDICTING, model)
        self.sources.attach(datamodule=datamodule, predict=dataloaders)
        self.predict_loop.forget_data()
        self.predict_loop.return_predictions = return_predictions is not False
        predictions: list[Any] | None = self._runner(module)(
            self, module, ckpt_path=ckpt_path, weights_only=weights_only, model_provided=model is not None
        )
        return predictions

    def _runner(self, module: LightningModule) -> Callable[..., Any]:
        """Return what runs: `run` itself, or the launcher of several processes with it."""
        launcher = self._strategy.launcher
        return run if launcher is None else partial(launch, launcher, TrainerCarrier(self, module))

    def _begin(self, fn: TrainerFn, model: Any) -> LightningModule:
        """Take up a call of one of the four methods; return the module it is about."""
        module = self._module_of(fn, model)
        self.state.fn = fn
        return module

    def _module_of(self, fn: TrainerFn, model: Any) -> LightningModule:
        if model is None:
            if self.lightning_module is None:
                raise TypeError(
                    f"`Trainer.{fn.value}()` needs a `LightningModule`, as no earlier run has left one:"
                    f" `trainer.{fn.value}(model)`."
                )
            return self.lightning_module
        if is_compiled(model):
            model = from_compiled(model)
        check_module(model, fn.value)
        return cast(LightningModule, model)

    def _shown(self, results: list[dict[str, float]] | None, stage: str, verbose: bool) -> list[dict[str, float]]:
        if verbose and results and self.is_global_zero:
            from fulmen.callbacks.results_table import print_results

            loop = self.validate_loop if stage == "validate" else self.test_loop
            (loop.show_results or print_results)(results, stage)
        return results or []

    # ---- during a run; for the loops, the strategy and `run`
    def attach(self, module: LightningModule) -> None:
        """Make a module the one that this Trainer runs."""
        self._strategy.connect(module)
        module.trainer = self
        if self.datamodule is not None:
            self.datamodule.trainer = self
        self._transfer_hooks = transfer_hooks(self)

    def enter_stage(self, stage: Any) -> RunningStage | None:
        """Switch to a stage and return the one before; the validation of a sanity check stays a sanity check."""
        before = self.state.stage
        if not (before == RunningStage.SANITY_CHECKING and stage == RunningStage.VALIDATING):
            self.state.stage = None if stage is None else RunningStage(stage)
        return before

    def begin_metrics(self) -> None:
        """Forget what earlier runs, or the sanity check, have logged."""
        self.metrics.deactivate()
        self.metrics.clear()
        self.metrics.module = self.lightning_module
        self.metrics.ranks = self._strategy if self.world_size > 1 else None
        synchronize_over(self.lightning_module, self._strategy.data_parallel_group)
        self.metrics.history = self.history if self.is_global_zero else None
        for store in self._metric_stores():
            store.clear()

    def end_metrics(self) -> None:
        """Take the values off the device, and let the last batch go."""
        try:
            self.metrics.to_cpu()
        finally:
            self.metrics.deactivate()
            synchronize_over(self.lightning_module, None)
            for store in self._metric_stores():
                store.leave_batches()

    def _metric_stores(self) -> tuple[MetricStore, ...]:
        fit = self.fit_loop
        return fit.metrics, fit.val_loop.metrics, self.validate_loop.metrics, self.test_loop.metrics

    def configured_optimizers(self) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
        """Call `configure_optimizers` and check what it returns."""
        module = self.lightning_module
        self.scope.hook = "configure_optimizers"
        with self.profile(f"{owner_label(module)}.configure_optimizers"):
            returned = module.configure_optimizers()
        self.scope.hook = None
        optimizers, configs = parse_optimizers(
            returned, module, steps_any_scheduler=is_overridden("lr_scheduler_step", module, LightningModule)
        )
        if module.automatic_optimization and len(optimizers) > 1 and not self.strategy.takes_one_optimizer:
            raise RuntimeError(
                f"`configure_optimizers` returned {len(optimizers)} optimizers, but automatic optimization steps"
                " one. Set"
                " `self.automatic_optimization = False` and step them in `training_step`."
            )
        return optimizers, configs

    @property
    def wrapped_optimizers(self) -> list[LightningOptimizer]:
        """The optimizers as users step them: through the strategy and precision."""
        if [wrapped.optimizer for wrapped in self._wrapped_optimizers] != self.optimizers:
            self._wrapped_optimizers = [LightningOptimizer(optimizer) for optimizer in self.optimizers]
        return self._wrapped_optimizers

    def make_optimization(self) -> AutomaticOptimization | ManualOptimization:
        """Decide, at the start of an epoch, how batches are optimized."""
        module, strategy = self.lightning_module, self._strategy
        common = (strategy, self.events, self.scope, self.fit_loop.progress)
        wants_outputs = self.events.on_train_batch_end is not nothing
        wrapped = self.wrapped_optimizers
        optimization: AutomaticOptimization | ManualOptimization
        if module.automatic_optimization:
            kind: Callable[..., AutomaticOptimization] = AutomaticOptimization
            if isinstance(self.metrics, DeferringBoard):  # `accumulate_grad_batches="auto"`
                kind = partial(MicroBatchedOptimization, board=self.metrics)
            optimization = kind(
                *common,
                wants_outputs=wants_outputs,
                told=self.fit_loop.told,
                optimizer=wrapped[0] if wrapped else None,
                clip_val=self.gradient_clip_val,
                clip_algorithm=self.gradient_clip_algorithm,
            )
        else:
            optimization = ManualOptimization(*common, wants_outputs=wants_outputs, told=self.fit_loop.told)
        if self.profiler_or_none is not None:
            optimization.measure(self._profiled_verb)
        for optimizer in wrapped:
            optimizer.connect(optimization.optimizer_step, self._toggled)
        return optimization

    @contextmanager
    def _toggled(self, optimizer: Optimizer, sync_grad: bool) -> Iterator[None]:
        sync: AbstractContextManager[Any] = nullcontext() if sync_grad else self._strategy.block_backward_sync()
        with self.lightning_module.toggled_optimizer(optimizer), sync:
            yield

    @property
    def transfer_hooks(self) -> TransferHooks | None:
        """The user's batch transfer hooks; None if all are the defaults."""
        return self._transfer_hooks

    @property
    def wants_batch_indices(self) -> bool:
        """Whether somebody wants to know which samples a prediction batch is made of."""
        return any(getattr(callback, "wants_batch_indices", False) for callback in self.callbacks)

    @property
    def wants_predictions(self) -> bool:
        """Whether somebody wants all predictions at the end, also if `predict` does not return them."""
        return any(getattr(callback, "wants_predictions", False) for callback in self.callbacks)

    @property
    def has_timer(self) -> bool:
        """Whether a `Timer` bounds the run."""
        return any(isinstance(callback, Timer) for callback in self.callbacks)

    def obey_signal(self) -> None:
        """Leave the run, or the machine, because of a signal; all ranks call it at the same step.

        Raises:
            SIGTERMException: Ends the run, and the process if nobody catches it.
            KeyboardInterrupt: The same, for Ctrl-C.
        """
        obey_signal(self)

    def renew_interrupted(self) -> None:
        """Make the checkpoint that was taken as the time for training was up the newest one again."""
        renew_interrupted(self)

    @property
    def received_sigterm(self) -> bool:
        """Whether a SIGTERM has come during the run."""
        return self.signals.received == signal.SIGTERM

    # ---- profiling
    @property
    def profiler_or_none(self) -> Profiler | None:
        """The profiler, unless it does nothing."""
        return None if type(self.profiler) is PassThroughProfiler else self.profiler

    def profile(self, action: str) -> AbstractContextManager[Any]:
        """Measure what happens inside the context."""
        profiler = self.profiler_or_none
        return nullcontext() if profiler is None else profiler.profile(action)

    def profiled(self, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is measured at each call; the function itself without a profiler."""
        profiler = self.profiler_or_none
        if profiler is None:
            return function

        def measured(*args: Any, **kwargs: Any) -> Any:
            with profiler.profile(action):
                return function(*args, **kwargs)

        return measured

    def profiled_next(self, action: str) -> Callable[[Callable[[], Any]], Callable[[], Any]] | None:
        """Return what wraps the fetching of batches, None without a profiler."""
        return None if self.profiler_or_none is None else partial(self.profiled, action)

    def _profiled_verb(self, verb: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.profiled(f"{owner_label(self._strategy)}.{verb}", function)

    # ---- checkpoints
    def save_checkpoint(
        self, filepath: _PATH, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; in a run with several processes, all must call it.

        Args:
            filepath: Where to write it.
            weights_only: Leave out what is only needed to train on.
            storage_options: Passed to the checkpoint IO.

        Raises:
            AttributeError: No model is attached.
        """
        if self.lightning_module is None:
            raise AttributeError(
                "`Trainer.save_checkpoint` has nothing to save: no model is attached. Call `fit` first."
            )
        hook, self.scope.hook = self.scope.hook, "on_save_checkpoint"
        with self.profile("save_checkpoint"):
            checkpoint = dump_checkpoint(self, weights_only=bool(weights_only))
            self._strategy.save_checkpoint(checkpoint, filepath, storage_options=storage_options)
            self._strategy.barrier("Trainer.save_checkpoint")
        self.scope.hook = hook

    @property
    def ckpt_path(self) -> _PATH | None:
        """The checkpoint that was loaded last; set it to be used by calls that pass none."""
        return self._ckpt_path

    @ckpt_path.setter
    def ckpt_path(self, ckpt_path: _PATH | None) -> None:
        self._ckpt_path = self._ckpt_path_of_user = ckpt_path

    @property
    def ckpt_path_of_user(self) -> _PATH | None:
        """What was assigned to `ckpt_path`."""
        return self._ckpt_path_of_user

    def note_ckpt_path(self, path: _PATH | None) -> None:
        """Report this path as `ckpt_path` from now on."""
        self._ckpt_path = path

    def keep_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Keep a loaded checkpoint until its random state is due; `None` lets it go."""
        self._checkpoint = checkpoint

    def restore_rng(self) -> None:
        """Continue the random numbers of the checkpoint, just before the first batch."""
        if self._checkpoint is not None:
            restore_rng(self, self._checkpoint)
            self._checkpoint = None

    # ---- also public
    @property
    def estimated_stepping_batches(self) -> int | float:
        """How many optimizer steps `fit` will take: for schedulers that must know. Loads the training data if needed.

        Infinite if neither the data nor `max_steps` says.
        """
        self.fit_loop.resolve_max_epochs()
        if self.max_epochs == -1 or not self.sources.is_defined("train"):
            return float("inf") if self.max_steps == -1 else self.max_steps
        self.fit_loop.load_data()
        return stepping_batches(
            self.num_training_batches, self.accumulate_grad_batches, self.max_epochs, self.max_steps
        )

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which modules are created on the device and in the precision of this Trainer.

        Args:
            empty_init: Leave weights uninitialised, when they will be loaded anyway.
        """
        return self._strategy.module_init_context(empty_init=empty_init)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process of each machine."""
        if self.local_rank == 0:
            print(*args, **kwargs)  # noqa: T201 - that is its purpose

    def report(self, path: _PATH | None = None) -> Path | None:
        """Write one HTML page on the runs so far: curves, hyperparameters, environment, checkpoints, how they ended.

        It is made from the folder of the first file logger that keeps metrics, else from `trainer.history`.

        Args:
            path: The file; `report.html` in `log_dir` by default.

        Returns:
            The path of the file, on the first process; None on others.
        """
        from fulmen.trainer.live_report import report_on

        return report_on(self, path) if self.is_global_zero else None

    def plan(
        self,
        model: LightningModule,
        batch: Any = None,
        *,
        num_nodes: int | None = None,
        devices: int | None = None,
        memory: str | float | None = None,
        datamodule: LightningDataModule | None = None,
    ) -> Plan:
        """Find out what a training step would take on machines that are not there: memory, exchanges, work.

        One step of the module is traced on one rank of an imagined world with this Trainer's strategy, precision,
        accumulation and clipping. Nothing is computed and tensors take no memory; the module may be on "meta".

        Args:
            model: The module; it is not changed.
            batch: A batch of one rank, or its shapes as text: `"8x2048:int64"`, `"ids=8x2048:int64,mask=8x2048"`. By
                default the first one of `train_dataloader` of datamodule or module, or `model.example_input_array`.
            num_nodes: Number of machines; that of the Trainer by default.
            devices: Devices of each machine; those of the Trainer by default.
            memory: Memory of a device, to tell whether it fits: bytes, `"80GiB"`, or a name as `"h100"`.
            datamodule: Gives the batch.

        Returns:
            The plan; `print` it, or take `plan.as_dict()`.

        Raises:
            PlanError: The step needs the values of tensors; it says in which line.
            MisconfigurationException: There is no batch, or no such mesh.

        Example::

            with torch.device("meta"):
                model = LitLlama(layers=80)
            print(Trainer(strategy="fsdp").plan(model, "1x8192:int64", num_nodes=128, devices=8, memory="h100"))
        """
        from fulmen.trainer.planning import plan_fit

        return plan_fit(self, model, batch, datamodule=datamodule, num_nodes=num_nodes, devices=devices, memory=memory)

    def print_events(self) -> None:
        """Print who acts at each event of a run, in calling order; call it in a hook or after a run."""
        self.events.build()
        for event in EVENTS:
            actors = [label.partition("{")[0] for label, _ in self.events.receivers(event)]
            print(f"{event.name:28} {' -> '.join(actors) if actors else '-'}")  # noqa: T201 - that is its purpose


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _datamodule_first(loaders: Any, datamodule: LightningDataModule | None) -> tuple[Any, LightningDataModule | None]:
    """A datamodule may stand in the place of the loaders."""
    if isinstance(loaders, LightningDataModule):
        if datamodule is not None:
            raise MisconfigurationException("Two datamodules were passed: one in the place of the loaders. Pass one.")
        return None, loaders
    return loaders, datamodule
