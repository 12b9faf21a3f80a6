"""A job that its cluster takes off the machine: save, ask for a new place in the queue, go on there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fulmen.checkpoint.paths import newest_hpc_checkpoint, newest_whole_checkpoint, next_hpc_path
from fulmen.plugins.environments.slurm import SLURMEnvironment
from fulmen.utilities.exceptions import SIGTERMException
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["RequeuedException", "requeue", "requeue_signal", "requeued_checkpoint"]


class RequeuedException(SIGTERMException):
    """Ends a run whose job goes on later, from the checkpoint that was saved last."""


def requeue_signal(trainer: Trainer) -> int | None:
    """Return the signal that asks for a requeue; `None` where no cluster would do it."""
    environment = trainer.strategy.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    return environment.requeue_signal


def requeue(trainer: Trainer, signum: int) -> None:
    """Save a checkpoint, if training, and put the job back into the queue; all ranks call it at the same step.

    Args:
        trainer: The Trainer of the run.
        signum: The signal that asked for it.

    Raises:
        RequeuedException: Leaves the run. If the cluster refuses, nothing is raised and the run goes on.
    """
    environment, strategy = trainer.strategy.cluster_environment, trainer.strategy
    if trainer.state.fn == "fit":
        path = strategy.broadcast(next_hpc_path(trainer.default_root_dir))
        trainer.save_checkpoint(path)
        strategy.checkpoint_io.wait()  # the cluster may kill this process before another thread has written it
        rank_zero_info(f"The cluster wants the machine back: saved `{path}`, asking for a new place in the queue.")
    for logger in trainer.loggers:
        logger.save()  # the cluster may kill this process before it comes to `finalize`
    is_queued = False
    if trainer.is_global_zero:
        is_queued = environment.requeue()  # type: ignore[union-attr]  # `requeue_signal` has found one that can
    if strategy.broadcast(is_queued):
        trainer.signals.is_obeyed = True
        raise RequeuedException(128 + signum)
    trainer.signals.received = None
    rank_zero_warn(
        "The cluster did not put the job back into the queue, so the run goes on until the machine is taken away."
        " What `scontrol requeue` answered stands above; is the job submitted with `--requeue`?"
    )


def requeued_checkpoint(trainer: Trainer) -> str | None:
    """Return where a requeued job goes on: the newest whole checkpoint of its earlier attempts; `None` in others.

    Args:
        trainer: The Trainer, with callbacks that have chosen their folders.
    """
    environment = trainer.strategy.cluster_environment
    if trainer.state.fn != "fit" or requeue_signal(trainer) is None or not isinstance(environment, SLURMEnvironment):
        return None
    if environment.restart_count() == 0:
        return None
    saved = newest_hpc_checkpoint(trainer.default_root_dir)
    folders = {getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks}
    path = newest_whole_checkpoint([saved] if saved else [], [os.fspath(folder) for folder in folders if folder])
    if path is None:
        rank_zero_warn(
            "This job was requeued, but no checkpoint of its earlier attempt is in"
            f" `{trainer.default_root_dir}` or the folders of its checkpoint callbacks. Training begins anew."
        )
    else:
        rank_zero_info(f"This job was requeued (attempt {environment.restart_count() + 1}): it goes on from `{path}`.")
    return path
