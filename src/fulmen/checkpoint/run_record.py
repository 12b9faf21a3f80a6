"""What ties the files of one training together: which run wrote a checkpoint, after which, and how far its log was.

A run that goes on from a checkpoint writes the log as if it had never been interrupted: rows that the earlier run
logged after the checkpoint are taken back, since they come again, and a row that was due just then is sent.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["RunRecord", "dump_run", "restore_log", "send_owed_row"]

_MOST_IDS = 1000  # of restarts; 20 bytes each


class RunRecord:
    """Names this fit and those it goes on from, oldest first."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def begin(self, own: dict[str, Any] | None) -> None:
        """Take a new name for a fit.

        Args:
            own: What the checkpoint has of ours, if the fit goes on from one.
        """
        earlier = (own or {}).get("run", [])
        self.ids = [*(str(each) for each in earlier[1 - _MOST_IDS :]), secrets.token_hex(8)]


def dump_run(trainer: Trainer) -> dict[str, Any]:
    """Return which run this is and where its loggers stand; all ranks must call it.

    Args:
        trainer: The Trainer of the run.
    """
    owed = _owed_row(trainer)
    for logger in trainer.loggers:
        logger.save()  # what was logged before a checkpoint must not be lost with the process after it
    rewound = trainer.fit_loop.rewound
    positions = [logger.position() for logger in trainer.loggers] if rewound is None else rewound.log_positions
    log = {"positions": positions, **({} if owed is None else {"owed": owed})}
    return {"run": list(trainer.run_record.ids), **({"log": log} if positions else {})}


def restore_log(trainer: Trainer, own: dict[str, Any]) -> None:
    """Take back rows that were logged after the checkpoint, in logs that go on.

    Args:
        trainer: The Trainer of the run, before anything is logged.
        own: What the checkpoint has of ours.
    """
    positions = own.get("log", {}).get("positions", [])
    for logger, position in zip(trainer.loggers, positions, strict=False):
        logger.resume_at(position)


def send_owed_row(trainer: Trainer, own: dict[str, Any]) -> None:
    """Send the row that was due when the checkpoint was written.

    Args:
        trainer: The Trainer of the run.
        own: What the checkpoint has of ours.
    """
    owed = own.get("log", {}).get("owed")
    if owed is not None:
        trainer.metrics.send(dict(owed["row"]), int(owed["step"]), owed["epoch"])


def _owed_row(trainer: Trainer) -> dict[str, Any] | None:
    """Return the row that the loop sends after the hooks in which a checkpoint is written."""
    loop, board = trainer.fit_loop, trainer.metrics
    epochs, batches = loop.progress.epochs.current, loop.progress.batches.current
    if trainer.state.fn != "fit" or not trainer.loggers or epochs.started == epochs.completed:
        return None
    step, store = loop.batches_that_stepped, loop.metrics
    if epochs.processed > epochs.completed:
        board.sync()
        step -= 1
        row = {each.settled.epoch_name: each.epoch_tensor() for _, each in store.epoch_entries() if each.settled.logger}
    else:
        is_over = batches.processed == batches.completed or loop.rewound is not None
        if is_over or loop.has_started_window or not trainer.log_every_n_steps or not loop.row_is_due():
            return None
        board.sync_steps()
        row = {each.settled.step_name: each.step_tensor() for each in store.step_entries() if each.settled.logger}
    numbers = {name: float(value) for name, value in row.items()}  # sync: a checkpoint reads
    return {"row": numbers, "step": step, "epoch": trainer.current_epoch} if numbers else None
