"""ModelSummary: shows the layers and parameters of the module as training begins."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fulmen.core.callback import Callback
from fulmen.utilities.model_summary.model_summary import ModelSummary as Summary
from fulmen.utilities.model_summary.model_summary import format_summary_table, summarize
from fulmen.utilities.model_summary.model_summary_deepspeed import DeepSpeedSummary

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["ModelSummary"]

log = logging.getLogger(__name__)


class ModelSummary(Callback):
    """Logs a table of the layers of the module when fit begins, on the first process.

    Args:
        max_depth: 1 lists the children, 2 their children too, -1 all layers, 0 shows nothing.
        summarize_kwargs: Handed to `summarize`, for a class derived from this one.

    Example::

        trainer = Trainer(callbacks=[ModelSummary(max_depth=-1)])
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        self._max_depth = max_depth
        self._summarize_kwargs = summarize_kwargs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the summary, on every process because an example input is run, and show it on the first."""
        if self._max_depth == 0:
            return
        summary = self._summary(trainer, pl_module)
        table = summary.table()
        if trainer.is_global_zero:
            self.summarize(
                table,
                summary.total_parameters,
                summary.trainable_parameters,
                summary.model_size,
                summary.total_training_modes,
                total_flops=summary.total_flops,
                **self._summarize_kwargs,
            )
            self.show_further(summary.further_totals())

    def _summary(self, trainer: Trainer, pl_module: LightningModule) -> Summary:
        if getattr(trainer.strategy, "zero_stage_3", False):
            return DeepSpeedSummary(pl_module, max_depth=self._max_depth)
        return summarize(pl_module, max_depth=self._max_depth)

    @staticmethod
    def show_further(totals: list[tuple[str, str]]) -> None:
        """Show what training needs beside the weights; override it to show it in another way.

        Args:
            totals: Numbers as text, with their names.
        """
        if totals:
            log.info("%s", "\n".join(f"{number:<10}{what}" for number, what in totals))

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Show a summary; override it to show yours.

        Args:
            summary_data: The table by columns: title and cells.
            total_parameters: Number of values in all parameters.
            trainable_parameters: Number of those that are trained.
            model_size: Size of the parameters in MB.
            total_training_modes: Number of modules in mode "train" and "eval".
            total_flops: FLOPs of one forward pass of the example input; 0 without one.
            summarize_kwargs: What the constructor was given.
        """
        totals = (total_parameters, trainable_parameters, model_size, total_training_modes, total_flops)
        log.info("\n%s", format_summary_table(*totals, *summary_data))
