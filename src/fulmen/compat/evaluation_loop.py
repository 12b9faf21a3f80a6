"""The evaluation loop with Lightning's arguments, for packages that derive their own (torch-uncertainty)."""

from __future__ import annotations

from typing import Any

from fulmen.callbacks.results_table import print_results
from fulmen.loops import evaluate
from fulmen.trainer.states import RunningStage, TrainerFn
from fulmen.trainer.trainer import Trainer

__all__ = ["EvaluationLoop"]


class _AlsoOurs(type):
    """Takes the loops that a Trainer makes by itself for instances, too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or (
            cls is EvaluationLoop and isinstance(instance, evaluate.EvaluationLoop)
        )


class EvaluationLoop(evaluate.EvaluationLoop, metaclass=_AlsoOurs):
    """As `trainer.validate_loop` and `trainer.test_loop`, to put there: `trainer.test_loop = Derived(trainer, ...)`.

    Args:
        trainer: The Trainer that runs it.
        trainer_fn: "validate", "test" or "fit".
        stage: Of the evaluation.
        verbose: Show the results.
        inference_mode: Run without what autograd needs, unless the Trainer says otherwise.
    """

    def __init__(
        self, trainer: Trainer, trainer_fn: TrainerFn, stage: RunningStage, verbose: bool = True,
        inference_mode: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(trainer, RunningStage(stage).value, inside_fit=trainer_fn == TrainerFn.FITTING)
        self.verbose = verbose
        self.inference_mode = inference_mode
        self.show_results = self._show

    def run(self, *, max_batches: list[int | float] | None = None) -> list[dict[str, float]]:
        """Evaluate once; return the epoch's metrics, one dict per dataloader.

        Args:
            max_batches: Bounds per dataloader that replace the usual ones.
        """
        mode, self.trainer.inference_mode = self.trainer.inference_mode, self.inference_mode
        try:
            return super().run(max_batches=max_batches)
        finally:
            self.trainer.inference_mode = mode

    def _show(self, results: list[dict[str, float]], stage: str) -> None:
        if self.verbose:
            self._print_results(results, stage)

    @staticmethod
    def _print_results(results: list[dict[str, Any]], stage: str) -> None:
        """Print the table; what packages override."""
        print_results(results, stage)
