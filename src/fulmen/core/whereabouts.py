"""Where a run is right now, for messages; read from outside, so that the loops pay nothing for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fulmen.core.states import RunningStage

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["Whereabouts", "whereabouts"]


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """A place in a run.

    Attributes:
        stage: "train", "validate", "sanity_check", "test", "predict"; empty before and after.
        hook: The hook or step that runs, `None` between two of them.
        epoch: Number of the epoch, from 0.
        batch_idx: Index of the batch that the stage works on, or waits for.
        num_done: Batches that this process has completed, in all stages together.
        counters: What else grows while the run makes progress.
    """

    stage: str
    hook: str | None
    epoch: int
    batch_idx: int
    num_done: int
    counters: tuple[int, ...]

    def __str__(self) -> str:
        stage = f"{self.stage}, " if self.stage else ""
        hook = f", in `{self.hook}`" if self.hook else ""
        return f"{stage}epoch {self.epoch}, batch {self.batch_idx}{hook}"


def whereabouts(trainer: Trainer) -> Whereabouts:
    """Return where the run of a Trainer is; may be called from any thread.

    Args:
        trainer: The Trainer.
    """
    fit = trainer.fit_loop
    loops: dict[str, Any] = {
        RunningStage.TRAINING: fit,
        RunningStage.VALIDATING: fit.val_loop if trainer.state.fn == "fit" else trainer.validate_loop,
        RunningStage.SANITY_CHECKING: fit.val_loop,
        RunningStage.TESTING: trainer.test_loop,
        RunningStage.PREDICTING: trainer.predict_loop,
    }
    stage = trainer.state.stage
    current = loops.get(stage, fit).batch_progress.current if stage else fit.batch_progress.current
    # between two batches the next one is fetched: that is the one it is about
    batch_idx = current.ready if current.ready == current.completed else current.ready - 1
    totals = [each.batch_progress.total for each in loops.values()]
    epochs = fit.epoch_progress.total
    counters = [fit.global_step, epochs.ready, epochs.processed, epochs.completed]
    counters += [number for total in totals for number in (total.ready, total.processed)]
    return Whereabouts(
        stage=stage.value if stage else "",
        hook=trainer.scope.hook,
        epoch=trainer.current_epoch,
        batch_idx=batch_idx,
        num_done=sum(total.completed for total in totals),
        counters=tuple(counters),
    )
