"""Callbacks that come with the framework, and their base class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.callbacks.batch_size_finder import BatchSizeFinder as BatchSizeFinder
    from fulmen.callbacks.checkpoint import Checkpoint as Checkpoint
    from fulmen.callbacks.device_stats_monitor import DeviceStatsMonitor as DeviceStatsMonitor
    from fulmen.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from fulmen.callbacks.finetuning import BackboneFinetuning as BackboneFinetuning
    from fulmen.callbacks.finetuning import BaseFinetuning as BaseFinetuning
    from fulmen.callbacks.finetuning import GradualUnfreezing as GradualUnfreezing
    from fulmen.callbacks.finetuning import discriminative_learning_rates as discriminative_learning_rates
    from fulmen.callbacks.gradient_accumulation_scheduler import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from fulmen.callbacks.gradient_monitor import GradientMonitor as GradientMonitor
    from fulmen.callbacks.gradient_noise_scale import GradientNoiseScale as GradientNoiseScale
    from fulmen.callbacks.hang_watchdog import HangWatchdog as HangWatchdog
    from fulmen.callbacks.knowledge_distillation import KnowledgeDistillation as KnowledgeDistillation
    from fulmen.callbacks.lambda_function import LambdaCallback as LambdaCallback
    from fulmen.callbacks.lr_finder import LearningRateFinder as LearningRateFinder
    from fulmen.callbacks.lr_monitor import LearningRateMonitor as LearningRateMonitor
    from fulmen.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from fulmen.callbacks.model_summary import ModelSummary as ModelSummary
    from fulmen.callbacks.non_finite_guard import NonFiniteError as NonFiniteError
    from fulmen.callbacks.non_finite_guard import NonFiniteGuard as NonFiniteGuard
    from fulmen.callbacks.on_exception_checkpoint import OnExceptionCheckpoint as OnExceptionCheckpoint
    from fulmen.callbacks.prediction_writer import BasePredictionWriter as BasePredictionWriter
    from fulmen.callbacks.progress.progress_bar import ProgressBar as ProgressBar
    from fulmen.callbacks.progress.rich_progress import RichProgressBar as RichProgressBar
    from fulmen.callbacks.progress.tqdm_progress import TQDMProgressBar as TQDMProgressBar
    from fulmen.callbacks.pruning import ModelPruning as ModelPruning
    from fulmen.callbacks.quantization import QuantizationAwareTraining as QuantizationAwareTraining
    from fulmen.callbacks.rich_model_summary import RichModelSummary as RichModelSummary
    from fulmen.callbacks.spike import SpikeDetection as SpikeDetection
    from fulmen.callbacks.stochastic_weight_avg import StochasticWeightAveraging as StochasticWeightAveraging
    from fulmen.callbacks.throughput_monitor import ThroughputMonitor as ThroughputMonitor
    from fulmen.callbacks.timer import Timer as Timer
    from fulmen.callbacks.warmup import WarmupLR as WarmupLR
    from fulmen.callbacks.weight_averaging import EMAWeightAveraging as EMAWeightAveraging
    from fulmen.callbacks.weight_averaging import WeightAveraging as WeightAveraging
    from fulmen.core.callback import Callback as Callback

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BatchSizeFinder": "fulmen.callbacks.batch_size_finder",
        "Callback": "fulmen.core.callback",
        "Checkpoint": "fulmen.callbacks.checkpoint",
        "DeviceStatsMonitor": "fulmen.callbacks.device_stats_monitor",
        "EarlyStopping": "fulmen.callbacks.early_stopping",
        "GradientAccumulationScheduler": "fulmen.callbacks.gradient_accumulation_scheduler",
        "GradientMonitor": "fulmen.callbacks.gradient_monitor",
        "GradientNoiseScale": "fulmen.callbacks.gradient_noise_scale",
        "HangWatchdog": "fulmen.callbacks.hang_watchdog",
        "LambdaCallback": "fulmen.callbacks.lambda_function",
        "LearningRateFinder": "fulmen.callbacks.lr_finder",
        "LearningRateMonitor": "fulmen.callbacks.lr_monitor",
        "ModelCheckpoint": "fulmen.callbacks.model_checkpoint",
        "ModelSummary": "fulmen.callbacks.model_summary",
        "NonFiniteError": "fulmen.callbacks.non_finite_guard",
        "NonFiniteGuard": "fulmen.callbacks.non_finite_guard",
        "OnExceptionCheckpoint": "fulmen.callbacks.on_exception_checkpoint",
        "ProgressBar": "fulmen.callbacks.progress.progress_bar",
        "QuantizationAwareTraining": "fulmen.callbacks.quantization",
        "RichModelSummary": "fulmen.callbacks.rich_model_summary",
        "RichProgressBar": "fulmen.callbacks.progress.rich_progress",
        "SpikeDetection": "fulmen.callbacks.spike",
        "TQDMProgressBar": "fulmen.callbacks.progress.tqdm_progress",
        "ThroughputMonitor": "fulmen.callbacks.throughput_monitor",
        "Timer": "fulmen.callbacks.timer",
        "BackboneFinetuning": "fulmen.callbacks.finetuning",
        "BaseFinetuning": "fulmen.callbacks.finetuning",
        "GradualUnfreezing": "fulmen.callbacks.finetuning",
        "discriminative_learning_rates": "fulmen.callbacks.finetuning",
        "ModelPruning": "fulmen.callbacks.pruning",
        "StochasticWeightAveraging": "fulmen.callbacks.stochastic_weight_avg",
        "WeightAveraging": "fulmen.callbacks.weight_averaging",
        "EMAWeightAveraging": "fulmen.callbacks.weight_averaging",
        "BasePredictionWriter": "fulmen.callbacks.prediction_writer",
        "KnowledgeDistillation": "fulmen.callbacks.knowledge_distillation",
        "WarmupLR": "fulmen.callbacks.warmup",
    },
)
