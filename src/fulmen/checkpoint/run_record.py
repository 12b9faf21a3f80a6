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
    kinds = [type(logger).__qualname__ for logger in trainer.loggers]
    log = {"positions": positions, "loggers": kinds, **({} if owed is None else {"owed": owed})}
    history = trainer.history.state_dict(None if rewound is None else rewound.history_position)
    return {
        "run": list(trainer.run_record.ids),
        **({"log": log} if positions or owed is not None else {}),
        **({"history": history} if history else {}),
    }


def restore_log(trainer: Trainer, own: dict[str, Any]) -> None:
    """Take back rows that were logged after the checkpoint, in logs that go on.

    Args:
        trainer: The Trainer of the run, before anything is logged.
        own: What the checkpoint has of ours.
    """
    log = own.get("log", {})
    kinds = [type(logger).__qualname__ for logger in trainer.loggers]
    kinds_then = log.get("loggers", kinds)
    for index, logger in enumerate(trainer.loggers):
        number = kinds[:index].count(kinds[index])
        same = [each for kind, each in zip(kinds_then, log.get("positions", []), strict=False) if kind == kinds[index]]
        for other, position in enumerate(same):  # there may be other loggers now, or another order
            if other == number or "log_dir" in position:  # a logger knows its own folder
                logger.resume_at(position)
    if trainer.is_global_zero:  # which keeps it
        trainer.history.load_state_dict(own.get("history", {}))


def send_owed_row(trainer: Trainer, own: dict[str, Any]) -> None:
    """Send the row that was due when the checkpoint was written.

    Args:
        trainer: The Trainer of the run.
        own: What the checkpoint has of ours.
    """
    owed = own.get("log", {}).get("owed")
    if owed is not None:
        unsent, per_step = dict(owed.get("unsent", {})), bool(owed.get("per_step", True))
        trainer.metrics.send(dict(owed["row"]), int(owed["step"]), owed["epoch"], unsent=unsent, per_step=per_step)


def _owed_row(trainer: Trainer) -> dict[str, Any] | None:
    """Return the row that the loop sends after the hooks in which a checkpoint is written."""
    loop, board = trainer.fit_loop, trainer.metrics
    epochs, batches = loop.progress.epochs.current, loop.progress.batches.current
    if trainer.state.fn != "fit" or epochs.started == epochs.completed:
        return None
    step, is_epoch = loop.batches_that_stepped, epochs.processed > epochs.completed
    if is_epoch:
        board.sync()
        step -= 1
        rows = board.epoch_rows()
    else:
        is_over = batches.processed == batches.completed or loop.rewound is not None
        if is_over or loop.has_started_window or not trainer.log_every_n_steps or not loop.row_is_due():
            return None
        board.sync_steps()
        rows = board.step_rows()
    row, unsent = ({name: float(value) for name, value in each.items() if value.numel() == 1} for each in rows)  # sync
    if not row and not unsent:
        return None
    return {"row": row, "unsent": unsent, "per_step": not is_epoch, "step": step, "epoch": trainer.current_epoch}
