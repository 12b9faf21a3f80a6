"""What of Lightning's public names is not there, and why; a test compares the list with the recorded names."""

from __future__ import annotations

__all__ = ["MISSING", "reason_for"]

_SHARDED = "sharding on TPUs, by torch_xla, is not built; FSDP is there for GPUs and CPUs"
_RESUME = "the loops note where a checkpoint was taken by their counters, not by a stage"
_BARS = "the bars are plain tasks of `rich.progress`, which need no classes of their own"
_HOSTED = "it belongs to the hosted service lightning.ai, which fulmen has no connection to"

# name -> why; it stands for all below it, too
MISSING: dict[str, str] = {
    "lightning.fabric.strategies.XLAFSDPStrategy": _SHARDED,
    "lightning.fabric.strategies.xla_fsdp": _SHARDED,
    "lightning.pytorch.callbacks.progress.rich_progress.CustomInfiniteTask": _BARS,
    "lightning.pytorch.callbacks.progress.rich_progress.CustomProgress": _BARS,
    "lightning.pytorch.loggers.LitLogger.experiment": _HOSTED,
    "lightning.pytorch.loggers.LitLogger.get_file": _HOSTED,
    "lightning.pytorch.loggers.LitLogger.log_file": _HOSTED,
    "lightning.pytorch.loggers.LitLogger.log_metadata": _HOSTED,
    "lightning.pytorch.loggers.LitLogger.log_model": _HOSTED,
    "lightning.pytorch.loggers.LitLogger.log_model_artifact": _HOSTED,
    "lightning.pytorch.loggers.LitLogger.sub_dir": _HOSTED,
    "lightning.pytorch.loggers.LitLogger.url": _HOSTED,
    "lightning.pytorch.loops.evaluation_loop.RestartStage": _RESUME,
    "lightning.pytorch.loops.fit_loop.RestartStage": _RESUME,
    "lightning.pytorch.loops.training_epoch_loop.RestartStage": _RESUME,
}


def reason_for(name: str) -> str | None:
    """Tell why a name is missing.

    Args:
        name: Full name, as of `lightning.pytorch...` or `lightning.fabric...`.

    Returns:
        The reason; None if the name is not on the list.
    """
    parts = name.split(".")
    return next(
        (MISSING[above] for end in range(len(parts), 0, -1) if (above := ".".join(parts[:end])) in MISSING), None
    )
