"""What callbacks need to know where a rank has only a part of each weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["check_takes_parts", "check_takes_whole"]


def check_takes_whole(trainer: Trainer, what: str, why: str, instead: str) -> None:
    """Refuse strategies that leave each rank a part of the weights; for the `setup` of callbacks that need them whole.

    Args:
        trainer: The Trainer of the run.
        what: Which option of the user's it is about, as code: "EarlyStopping(restore_best_weights=True)".
        why: What the callback does with whole weights: "keeps a copy of the weights".
        instead: What the user can do, as sentences.

    Raises:
        MisconfigurationException: The strategy divides the weights.
    """
    if trainer.strategy.restore_checkpoint_after_setup:
        raise _refusal(trainer, what, why, instead)


def check_takes_parts(trainer: Trainer, what: str, why: str) -> None:
    """Refuse strategies that keep weights in a form of their own; for callbacks that work on `DTensor`s as well.

    Args:
        trainer: The Trainer of the run.
        what: Which option of the user's it is about, as code.
        why: What the callback does with the weights.

    Raises:
        MisconfigurationException: The strategy divides the weights, and not into `DTensor`s.
    """
    if trainer.strategy.restore_checkpoint_after_setup and not trainer.strategy.has_dtensors:
        raise _refusal(trainer, what, why, "Train with `strategy='ddp'`, 'fsdp' or on one device.")


def _refusal(trainer: Trainer, what: str, why: str, instead: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"`{what}` {why}, but `{type(trainer.strategy).__name__}` divides them among ranks. {instead}"
    )
