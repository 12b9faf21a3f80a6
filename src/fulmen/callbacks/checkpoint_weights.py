"""Whether the weights may be saved: a checkpoint of weights that are not finite is no state to go on from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.finite import first_non_finite
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["FiniteWeights"]


class FiniteWeights:
    """Looks at all parameters before a save; buffers may hold infinity on purpose, as masks do."""

    def __init__(self) -> None:
        self._told = False

    def check(self, trainer: Trainer) -> bool:
        """Tell whether the parameters of all ranks are finite, and say it once if they are not any more.

        Args:
            trainer: The running trainer; all ranks must call.
        """
        bad = first_non_finite(trainer.lightning_module.named_parameters())
        if trainer.strategy.reduce_boolean_decision(bad is None, all=True):
            self._told = False
            return True
        if not self._told:
            self._told = True
            where = "of another process" if bad is None else f"`{bad}`"
            rank_zero_warn(
                f"Epoch {trainer.current_epoch}, step {trainer.global_step}: the weights are not finite, beginning with"
                f" the parameter {where}. `ModelCheckpoint` writes no checkpoint of them, so the best and the last file"
                " stay those before. Look for the loss that became NaN or infinite, e.g. with"
                " `Trainer(detect_anomaly=True)`, and resume with a smaller learning rate or with gradient clipping."
            )
        return False
