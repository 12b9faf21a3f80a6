"""Callbacks and tuner."""

from __future__ import annotations

__all__ = ["CALLBACKS"]

CALLBACKS: dict[str, dict[str, str]] = {
    "lightning.pytorch.callbacks": {
        "fulmen.callbacks.batch_size_finder": "BatchSizeFinder",
        "fulmen.callbacks.checkpoint": "Checkpoint",
        "fulmen.callbacks.device_stats_monitor": "DeviceStatsMonitor",
        "fulmen.callbacks.early_stopping": "EarlyStopping",
        "fulmen.callbacks.gradient_accumulation_scheduler": "GradientAccumulationScheduler",
        "fulmen.callbacks.lambda_function": "LambdaCallback",
        "fulmen.callbacks.lr_finder": "LearningRateFinder",
        "fulmen.callbacks.lr_monitor": "LearningRateMonitor",
        "fulmen.callbacks.model_checkpoint": "ModelCheckpoint",
        "fulmen.callbacks.model_summary": "ModelSummary",
        "fulmen.callbacks.on_exception_checkpoint": "OnExceptionCheckpoint",
        "fulmen.callbacks.progress.progress_bar": "ProgressBar",
        "fulmen.callbacks.progress.rich_progress": "RichProgressBar",
        "fulmen.callbacks.progress.tqdm_progress": "TQDMProgressBar",
        "fulmen.callbacks.rich_model_summary": "RichModelSummary",
        "fulmen.callbacks.spike": "SpikeDetection",
        "fulmen.callbacks.throughput_monitor": "ThroughputMonitor",
        "fulmen.callbacks.timer": "Timer",
        "fulmen.callbacks.finetuning": "BackboneFinetuning BaseFinetuning",
        "fulmen.callbacks.pruning": "ModelPruning",
        "fulmen.callbacks.stochastic_weight_avg": "StochasticWeightAveraging",
        "fulmen.callbacks.weight_averaging": "EMAWeightAveraging WeightAveraging",
        "fulmen.callbacks.prediction_writer": "BasePredictionWriter",
        "fulmen.core.callback": "Callback",
    },
    "lightning.pytorch.callbacks.batch_size_finder": {"fulmen.callbacks.batch_size_finder": "BatchSizeFinder"},
    "lightning.pytorch.callbacks.callback": {"fulmen.core.callback": "Callback"},
    "lightning.pytorch.callbacks.checkpoint": {"fulmen.callbacks.checkpoint": "Checkpoint"},
    "lightning.pytorch.callbacks.device_stats_monitor": {"fulmen.callbacks.device_stats_monitor": "DeviceStatsMonitor"},
    "lightning.pytorch.callbacks.early_stopping": {
        "fulmen.callbacks.early_stopping": "EarlyStopping EarlyStoppingReason",
    },
    "lightning.pytorch.callbacks.gradient_accumulation_scheduler": {
        "fulmen.callbacks.gradient_accumulation_scheduler": "GradientAccumulationScheduler",
    },
    "lightning.pytorch.callbacks.lambda_function": {"fulmen.callbacks.lambda_function": "LambdaCallback"},
    "lightning.pytorch.callbacks.lr_finder": {"fulmen.callbacks.lr_finder": "LearningRateFinder"},
    "lightning.pytorch.callbacks.lr_monitor": {"fulmen.callbacks.lr_monitor": "LearningRateMonitor"},
    "lightning.pytorch.callbacks.model_checkpoint": {"fulmen.callbacks.model_checkpoint": "ModelCheckpoint"},
    "lightning.pytorch.callbacks.model_summary": {"fulmen.callbacks.model_summary": "ModelSummary"},
    "lightning.pytorch.callbacks.on_exception_checkpoint": {
        "fulmen.callbacks.on_exception_checkpoint": "OnExceptionCheckpoint",
    },
    "lightning.pytorch.callbacks.progress": {
        "fulmen.callbacks.progress.progress_bar": "ProgressBar",
        "fulmen.callbacks.progress.rich_progress": "RichProgressBar",
        "fulmen.callbacks.progress.tqdm_progress": "TQDMProgressBar",
    },
    "lightning.pytorch.callbacks.progress.progress_bar": {
        "fulmen.callbacks.progress.progress_bar": "ProgressBar get_standard_metrics",
    },
    "lightning.pytorch.callbacks.progress.rich_progress": {
        "fulmen.callbacks.progress.rich_columns": (
            "BatchesProcessedColumn CustomBarColumn CustomTimeColumn MetricsTextColumn ProcessingSpeedColumn"
        ),
        "fulmen.callbacks.progress.rich_progress": "RichProgressBar RichProgressBarTheme",
    },
    "lightning.pytorch.callbacks.progress.tqdm_progress": {
        "fulmen.callbacks.progress.tqdm_progress": "TQDMProgressBar Tqdm convert_inf",
    },
    "lightning.pytorch.callbacks.rich_model_summary": {"fulmen.callbacks.rich_model_summary": "RichModelSummary"},
    "lightning.pytorch.callbacks.finetuning": {
        "fulmen.callbacks.finetuning": "BackboneFinetuning BaseFinetuning multiplicative"
    },
    "lightning.pytorch.callbacks.pruning": {"fulmen.callbacks.pruning": "ModelPruning"},
    "lightning.pytorch.callbacks.spike": {"fulmen.callbacks.spike": "SpikeDetection"},
    "lightning.pytorch.callbacks.stochastic_weight_avg": {
        "fulmen.callbacks.stochastic_weight_avg": "StochasticWeightAveraging"
    },
    "lightning.pytorch.callbacks.throughput_monitor": {"fulmen.callbacks.throughput_monitor": "ThroughputMonitor"},
    "lightning.pytorch.callbacks.weight_averaging": {
        "fulmen.callbacks.weight_averaging": "EMAWeightAveraging WeightAveraging"
    },
    "lightning.pytorch.callbacks.prediction_writer": {
        "fulmen.callbacks.prediction_writer": "BasePredictionWriter WriteInterval"
    },
    "lightning.pytorch.callbacks.timer": {"fulmen.callbacks.timer": "Interval Timer"},
    "lightning.pytorch.tuner": {"fulmen.tuner.tuner": "Tuner"},
    "lightning.pytorch.tuner.batch_size_scaling": {},
    "lightning.pytorch.tuner.lr_finder": {"fulmen.tuner.lr_finder": "_LRFinder=LRFinder"},
    "lightning.pytorch.tuner.tuning": {"fulmen.tuner.tuner": "Tuner"},
}
