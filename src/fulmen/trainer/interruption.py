"""What a run does when a signal came or its time is up: save where training can go on, and leave."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from fulmen.checkpoint.paths import INTERRUPTED_NAME
from fulmen.core.states import TrainerFn, TrainerStatus
from fulmen.loops.agreement import TIME_IS_UP
from fulmen.trainer.requeue import requeue
from fulmen.trainer.run import run
from fulmen.utilities.files import is_local, local_path
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.strategies.launchers.launcher import Carrier, Launcher
    from fulmen.trainer.trainer import Trainer

__all__ = ["launch", "obey_signal", "renew_interrupted"]


def launch(launcher: Launcher, carrier: Carrier, trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Do a run in the processes of a launcher.

    Args:
        launcher: Of the strategy.
        carrier: Brings back what the run changed in other processes.
        trainer: The Trainer.
        args: Further arguments of `run`.
        kwargs: As well.

    Raises:
        SystemExit: Ctrl-C ended a run in other processes; one in this process leaves so by itself.
    """
    try:
        return launcher.launch(run, trainer, *args, carrier=carrier, **kwargs)
    except KeyboardInterrupt as interrupt:
        trainer.state.status = TrainerStatus.INTERRUPTED
        raise SystemExit(128 + signal.SIGINT) from interrupt


def obey_signal(trainer: Trainer) -> None:
    """Save, and leave the run because of what `trainer.signals` received; all ranks call it at the same step.

    It returns if it is the time that is up: training then ends as with `should_stop`. It also returns if a cluster
    wants the machine back and refuses to requeue the job.

    Args:
        trainer: The Trainer of the run.

    Raises:
        SIGTERMException: Leaves the run.
        KeyboardInterrupt: As well, for Ctrl-C.
    """
    signals = trainer.signals
    if signals.received == TIME_IS_UP:
        signals.received = None
        _save_interrupted(trainer)
        trainer.should_stop = True
    elif signals.received is not None and signals.received == signals.requeue_signal:
        requeue(trainer, signals.received)
    else:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            _save_interrupted(trainer)
        signals.raise_received()


def renew_interrupted(trainer: Trainer) -> None:
    """Make the interrupt checkpoint the newest file again: what the end of training saves has the epoch cut short.

    Args:
        trainer: The Trainer, at the end of a training that the time limit ended.
    """
    path = _path(trainer)
    if path is not None and is_local(path) and trainer.is_global_zero and os.path.exists(local_path(path)):
        now = time.time()
        os.utime(local_path(path), (now, now))


def _save_interrupted(trainer: Trainer) -> None:
    """Write the interrupt checkpoint, if the run saves checkpoints; leaving matters more than an error in this."""
    path = _path(trainer)
    if path is None:
        return
    try:
        trainer.save_checkpoint(path)
        trainer.strategy.checkpoint_io.wait()  # the process may be killed before another thread has written it
    except Exception as error:
        rank_zero_warn(f"The run ends without a checkpoint of this moment: {type(error).__name__}: {error}")
    else:
        rank_zero_info(f"Training is interrupted after step {trainer.global_step}: saved `{path}`.")


def _path(trainer: Trainer) -> str | None:
    folders = (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks)
    folder = next((os.fspath(folder) for folder in folders if folder), None)
    return None if folder is None or trainer.fast_dev_run else f"{folder.rstrip('/')}/{INTERRUPTED_NAME}"
