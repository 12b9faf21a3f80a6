"""What can be read off a Trainer: its properties, each one line on the owner of the state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

from fulmen.callbacks.checkpoint import Checkpoint
from fulmen.callbacks.early_stopping import EarlyStopping
from fulmen.callbacks.progress.progress_bar import ProgressBar
from fulmen.core.module import LightningModule
from fulmen.loggers.versioned import VersionedLogger
from fulmen.loops.evaluate import EvaluationLoop
from fulmen.loops.fit import FitLoop
from fulmen.loops.predict import PredictionLoop
from fulmen.metrics.publish import MetricBoard
from fulmen.trainer.sources import Sources
from fulmen.trainer.states import RunningStage, TrainerState, TrainerStatus
from fulmen.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.core.callback import Callback
    from fulmen.core.datamodule import LightningDataModule
    from fulmen.loggers.logger import Logger
    from fulmen.plugins.precision.precision import Precision
    from fulmen.strategies.strategy import Strategy
    from fulmen.utilities.types import LRSchedulerConfig

__all__ = ["TrainerView", "stepping_batches"]


class TrainerView:
    """The readable side of a Trainer."""

    # written by Trainer
    _strategy: Strategy
    callbacks: list[Callback]
    fit_loop: FitLoop
    validate_loop: EvaluationLoop
    test_loop: EvaluationLoop
    predict_loop: PredictionLoop
    metrics: MetricBoard
    sources: Sources
    state: TrainerState
    _loggers: list[Logger]
    _default_root_dir: str
    _log_dir_of_run: str | None
    limit_val_batches: int | float
    num_sanity_val_steps: int | float

    # ---- where
    @property
    def strategy(self) -> Strategy:
        """The strategy in use."""
        return self._strategy

    @property
    def accelerator(self) -> Accelerator | None:
        """The kind of hardware in use."""
        return self._strategy.accelerator

    @property
    def precision_plugin(self) -> Precision:
        """The numeric precision in use."""
        return self._strategy.precision_plugin

    @property
    def precision(self) -> str:
        """The name of the precision in use, e.g. `"bf16-mixed"`."""
        return str(self.precision_plugin.precision)

    @property
    def scaler(self) -> Any | None:
        """The gradient scaler of fp16 training."""
        return getattr(self.precision_plugin, "scaler", None)

    @property
    def global_rank(self) -> int:
        """Index of this process among all."""
        return self._strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Index of this process on its machine."""
        return self._strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Index of this machine."""
        return self._strategy.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._strategy.world_size

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self._strategy.num_nodes

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first of all processes."""
        return self._strategy.is_global_zero

    @property
    def device_ids(self) -> list[int]:
        """Indices of the devices in use on this machine."""
        devices = self._strategy.parallel_devices or [self._strategy.root_device]
        return [position if device.index is None else device.index for position, device in enumerate(devices)]

    @property
    def num_devices(self) -> int:
        """Number of devices in use on this machine."""
        return len(self.device_ids)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """Arguments for a distributed sampler; None with one process."""
        return getattr(self._strategy, "distributed_sampler_kwargs", None)

    # ---- what
    @property
    def model(self) -> torch.nn.Module | None:
        """The module as the strategy runs it, wrapped where it wraps."""
        return cast("torch.nn.Module | None", self._strategy.model)

    @property
    def lightning_module(self) -> LightningModule:
        """The module of the current or last run."""
        return cast(LightningModule, self._strategy.lightning_module)  # None before the first run

    @property
    def datamodule(self) -> LightningDataModule | None:
        """The datamodule of the current or last run."""
        return self.sources.datamodule

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the run."""
        return self._strategy.optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[Optimizer]) -> None:
        self._strategy.optimizers = optimizers

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The learning-rate schedulers of the run, with their settings."""
        return self._strategy.lr_scheduler_configs

    # ---- how far
    @property
    def global_step(self) -> int:
        """Optimizer steps taken, over all optimizers."""
        return self.fit_loop.progress.global_step

    @property
    def current_epoch(self) -> int:
        """Epochs finished; within an epoch its number, from 0."""
        return self.fit_loop.progress.epochs.current.completed

    @property
    def max_epochs(self) -> int | None:
        """The bound on epochs; -1 is endless, None is settled by `fit`."""
        return self.fit_loop.max_epochs

    @property
    def min_epochs(self) -> int | None:
        """Epochs before which a request to stop is not obeyed."""
        return self.fit_loop.min_epochs

    @property
    def max_steps(self) -> int:
        """The bound on optimizer steps; -1 is none."""
        return self.fit_loop.max_steps

    @property
    def min_steps(self) -> int | None:
        """Optimizer steps before which a request to stop is not obeyed."""
        return self.fit_loop.min_steps or None

    @property
    def is_last_batch(self) -> bool:
        """Whether the current training batch is the last of its epoch."""
        return self.fit_loop.is_last_batch

    @property
    def num_training_batches(self) -> int | float:
        """Training batches of an epoch; infinite before they are loaded."""
        return self.fit_loop.num_batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Validation batches of each dataloader."""
        return self._val_loop.max_batches

    @property
    def _val_loop(self) -> EvaluationLoop:
        return self.validate_loop if self.state.fn == "validate" else self.fit_loop.val_loop

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each dataloader that the sanity check runs."""
        return [min(self.num_sanity_val_steps, batches) for batches in self.fit_loop.val_loop.max_batches]

    @property
    def num_test_batches(self) -> list[int | float]:
        """Test batches of each dataloader."""
        return self.test_loop.max_batches

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Prediction batches of each dataloader."""
        return self.predict_loop.max_batches

    @property
    def val_check_batch(self) -> int | float | None:
        """After how many training batches validation is due; None before the data is loaded."""
        return None if self.fit_loop.plan is None else self.fit_loop.plan.interval

    @property
    def enable_validation(self) -> bool:
        """Whether `fit` validates: there is a step, data, and no limit of 0."""
        module = self.lightning_module
        return (
            module is not None
            and is_overridden("validation_step", module, LightningModule)
            and self.sources.is_defined("val")
            and self.limit_val_batches != 0
        )

    # ---- data
    @property
    def train_dataloader(self) -> Any:
        """The training loader(s) in the structure in which they were given; None before loading."""
        return None if self.fit_loop.batches is None else self.fit_loop.batches.loader.iterables

    @property
    def val_dataloaders(self) -> Any:
        """The validation loader(s); None before loading."""
        loop = self._val_loop
        return None if loop.batches is None else loop.batches.loader.iterables

    @property
    def test_dataloaders(self) -> Any:
        """The test loader(s); None before loading."""
        return None if self.test_loop.batches is None else self.test_loop.batches.loader.iterables

    @property
    def predict_dataloaders(self) -> Any:
        """The prediction loader(s); None before loading."""
        return None if self.predict_loop.batches is None else self.predict_loop.batches.loader.iterables

    # ---- metrics and logs
    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The values that callbacks can monitor."""
        return self.metrics.callback_metrics

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """The values sent to the loggers."""
        return self.metrics.logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The values logged with `prog_bar=True`."""
        return self.metrics.progress_bar_metrics

    @property
    def loggers(self) -> list[Logger]:
        """All loggers."""
        return self._loggers

    @loggers.setter
    def loggers(self, loggers: list[Logger] | None) -> None:
        self._loggers = list(loggers or [])
        self.metrics.loggers = self._loggers

    @property
    def logger(self) -> Logger | None:
        """The first logger."""
        return self._loggers[0] if self._loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [] if logger is None else [logger]

    @property
    def log_dir(self) -> str | None:
        """Where the first logger writes, `default_root_dir` without loggers."""
        if self._log_dir_of_run is not None:
            return self._log_dir_of_run
        if not self._loggers:
            return self.default_root_dir
        first = self._loggers[0]
        return first.log_dir or first.save_dir

    def settle_log_dir(self) -> None:
        """Agree over ranks on `log_dir`, so that reading it does not communicate; called by all at a run's start."""
        self._log_dir_of_run = None
        if self.world_size > 1:
            is_first = self.is_global_zero  # which reserves the folders
            for logger in self.loggers:
                if isinstance(logger, VersionedLogger):
                    logger.take_version(self._strategy.broadcast(logger.version if is_first else 0))
            self._log_dir_of_run = self._strategy.broadcast(self.log_dir if is_first else None)

    @property
    def default_root_dir(self) -> str:
        """Where logs and checkpoints go by default."""
        return self._default_root_dir

    # ---- callbacks
    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """All callbacks that save checkpoints."""
        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first callback that saves checkpoints."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All `EarlyStopping` callbacks."""
        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first `EarlyStopping` callback."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar."""
        return next((callback for callback in self.callbacks if isinstance(callback, ProgressBar)), None)

    # ---- state
    @property
    def interrupted(self) -> bool:
        """Whether the last run ended by an exception."""
        return self.state.status == TrainerStatus.INTERRUPTED

    @property
    def training(self) -> bool:
        """Whether a training epoch runs."""
        return self.state.stage == RunningStage.TRAINING

    @training.setter
    def training(self, value: bool) -> None:
        self._set_stage(RunningStage.TRAINING, value)

    @property
    def validating(self) -> bool:
        """Whether validation runs."""
        return self.state.stage == RunningStage.VALIDATING

    @validating.setter
    def validating(self, value: bool) -> None:
        self._set_stage(RunningStage.VALIDATING, value)

    @property
    def testing(self) -> bool:
        """Whether testing runs."""
        return self.state.stage == RunningStage.TESTING

    @testing.setter
    def testing(self, value: bool) -> None:
        self._set_stage(RunningStage.TESTING, value)

    @property
    def predicting(self) -> bool:
        """Whether prediction runs."""
        return self.state.stage == RunningStage.PREDICTING

    @predicting.setter
    def predicting(self, value: bool) -> None:
        self._set_stage(RunningStage.PREDICTING, value)

    @property
    def sanity_checking(self) -> bool:
        """Whether the sanity check runs."""
        return self.state.stage == RunningStage.SANITY_CHECKING

    @sanity_checking.setter
    def sanity_checking(self, value: bool) -> None:
        self._set_stage(RunningStage.SANITY_CHECKING, value)

    @property
    def evaluating(self) -> bool:
        """Whether validation, test or the sanity check runs."""
        return self.state.stage is not None and self.state.stage.evaluating

    def _set_stage(self, stage: RunningStage, value: bool) -> None:
        if value:
            self.state.stage = stage
        elif self.state.stage == stage:
            self.state.stage = None


def stepping_batches(num_batches: int | float, accumulate: int, max_epochs: int | None, max_steps: int) -> int | float:
    """Return how many optimizer steps a fit will take."""
    if math.isinf(num_batches):
        return math.inf if max_steps == -1 else max_steps
    total = math.ceil(num_batches / accumulate) * max(max_epochs or 0, 1)
    return total if max_steps == -1 else min(max_steps, total)
