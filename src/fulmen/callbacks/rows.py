"""When callbacks that measure send a row to the loggers: in the same steps as the Trainer does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["eval_row_is_due", "require_logger", "train_row_is_due"]


def train_row_is_due(trainer: Trainer) -> bool:
    """Tell, at the border of an accumulation window, whether its step is one that is logged.

    Args:
        trainer: The running Trainer, in a hook of a training batch. Inside of a window nothing is due.
    """
    loop = trainer.fit_loop
    return trainer.log_every_n_steps > 0 and not loop.has_started_window and loop.row_is_due()


def eval_row_is_due(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether a batch of an evaluation is one that is logged; never in the sanity check.

    Args:
        trainer: The running Trainer.
        batch_idx: Index of the batch in its dataloader.
    """
    every = trainer.log_every_n_steps
    return every > 0 and (batch_idx + 1) % every == 0 and not trainer.sanity_checking


def require_logger(trainer: Trainer, name: str) -> None:
    """Refuse a run whose rows nobody would get; `fast_dev_run` has none on purpose.

    Args:
        trainer: The Trainer.
        name: Of the callback.

    Raises:
        MisconfigurationException: The Trainer has no logger.
    """
    if not trainer.loggers and not trainer.fast_dev_run:
        raise MisconfigurationException(
            f"`{name}` needs a logger for what it measures, and the Trainer has none. Leave out"
            " `Trainer(logger=False)`, or the callback."
        )
