"""What each callback costs per step, over a Trainer without it, when it has nothing to do but look."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.frameworks import Framework
from benchmarks.models import make_model
from benchmarks.timing import Setup

__all__ = ["CALLBACKS", "trained_with"]

_NEVER = 10**9

Make = Callable[[Any], list[Any]]


def _throughput(callbacks: Any) -> list[Any]:
    return [callbacks.ThroughputMonitor(batch_size_fn=len)]


def _usual(bar: str, callbacks: Any) -> list[Any]:
    return [callbacks.ModelCheckpoint(), callbacks.LearningRateMonitor(), getattr(callbacks, bar)()]


# key, title, what makes the callbacks from the package's module, where the output goes
CALLBACKS: tuple[tuple[str, str, Make, str], ...] = (
    ("checkpoint", "ModelCheckpoint", lambda c: [c.ModelCheckpoint()], "nowhere"),
    ("checkpoint_steps", "ModelCheckpoint(every_n_train_steps=...)",
     lambda c: [c.ModelCheckpoint(every_n_train_steps=_NEVER)], "nowhere"),
    ("lr_monitor", "LearningRateMonitor", lambda c: [c.LearningRateMonitor()], "nowhere"),
    ("rich_bar", "RichProgressBar, terminal", lambda c: [c.RichProgressBar()], "terminal"),
    ("tqdm_bar", "TQDMProgressBar, terminal", lambda c: [c.TQDMProgressBar()], "terminal"),
    ("tqdm_pipe", "TQDMProgressBar, pipe", lambda c: [c.TQDMProgressBar()], "pipe"),
    ("early_stopping", "EarlyStopping", lambda c: [c.EarlyStopping("scalar_0", strict=False)], "nowhere"),
    ("timer", "Timer", lambda c: [c.Timer("10:00:00:00")], "nowhere"),
    ("accumulation", "GradientAccumulationScheduler",
     lambda c: [c.GradientAccumulationScheduler({_NEVER: 2})], "nowhere"),
    ("device_stats", "DeviceStatsMonitor(cpu_stats=True)", lambda c: [c.DeviceStatsMonitor(cpu_stats=True)], "nowhere"),
    ("throughput", "ThroughputMonitor", _throughput, "nowhere"),
    ("ema_never", "EMAWeightAveraging, no update due",
     lambda c: [c.EMAWeightAveraging(update_every_n_steps=_NEVER)], "nowhere"),
    ("ema", "EMAWeightAveraging, an update each step", lambda c: [c.EMAWeightAveraging()], "nowhere"),
    ("exception", "OnExceptionCheckpoint", lambda c: [c.OnExceptionCheckpoint(".")], "nowhere"),
    ("non_finite", "NonFiniteGuard", lambda c: [c.NonFiniteGuard()], "nowhere"),
    ("watchdog", "HangWatchdog", lambda c: [c.HangWatchdog("00:01:00:00")], "nowhere"),
    ("gradients", "GradientMonitor", lambda c: [c.GradientMonitor()], "nowhere"),
    ("usual_rich", "ModelCheckpoint, LearningRateMonitor and RichProgressBar", partial(_usual, "RichProgressBar"),
     "terminal"),
    ("usual_tqdm", "ModelCheckpoint, LearningRateMonitor and TQDMProgressBar", partial(_usual, "TQDMProgressBar"),
     "terminal"),
)  # fmt: skip


def trained_with(setup: Setup, framework: Framework, make: Make | None = None) -> float:
    """Time the steps of a fit with callbacks, and with a logger that gets no row; nan if the package lacks one.

    Args:
        setup: Sizes and device.
        framework: The package.
        make: Makes the callbacks; default none.
    """
    try:
        callbacks = [] if make is None else make(framework.callbacks)
    except AttributeError:
        return float("nan")
    trainer = framework.trainer(
        accelerator="gpu" if setup.device == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        logger=framework.loggers.CSVLogger("."),
        log_every_n_steps=_NEVER,
        callbacks=callbacks,
        enable_checkpointing=any("Checkpoint" in type(callback).__name__ for callback in callbacks),
        enable_progress_bar=any("ProgressBar" in type(callback).__name__ for callback in callbacks),
        enable_model_summary=False,
    )
    return setup.per_step(partial(trainer.fit, make_model(framework, schedules=True)))
