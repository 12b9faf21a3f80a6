"""Going on from a checkpoint: what was finished, what was interrupted, and where the data stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.metrics.objects import load_metric_states, metric_states

if TYPE_CHECKING:
    from fulmen.data.prefetch import TrainBatches
    from fulmen.loops.fit import FitLoop

__all__ = ["FitResume"]


class FitResume:
    """Puts a restored fit back to the point at which its checkpoint was taken.

    A checkpoint may stem from any hook. The counters tell: an epoch that was *processed* has only its last schedulers
    to step; one that was *started* goes on at the first batch that was not processed; one only *ready* begins anew.
    """

    def __init__(self, loop: FitLoop) -> None:
        self._loop = loop
        self.is_mid_epoch = False
        self._epoch_was_processed = False
        self._batch_was_processed = False
        self._is_loaded = False
        self._position: dict[str, Any] | None = None
        self._loader_states: list[Any] | None = None
        self._metrics: dict[str, float] = {}

    # ---- reading a checkpoint
    def loaded(self, state: dict[str, Any]) -> None:
        """Note what the counters of a checkpoint say; called once they are loaded."""
        self._loader_states = state["state_dict"].get("combined_loader")
        self._is_loaded = True
        done = self._loop.progress
        epochs, batches = done.epochs, done.batches
        self._epoch_was_processed = epochs.current.processed > epochs.current.completed
        self.is_mid_epoch = not self._epoch_was_processed and epochs.current.started > epochs.current.completed
        self._batch_was_processed = self.is_mid_epoch and batches.current.completed < batches.current.processed
        if self._epoch_was_processed:
            for counts in (epochs.total, epochs.current):
                counts.completed = counts.processed
        for counts in (epochs.total, epochs.current):
            counts.ready = counts.started = counts.processed = counts.completed + self.is_mid_epoch
            counts.processed -= self.is_mid_epoch
        for counts in (batches.total, batches.current):
            counts.ready = counts.started = counts.completed = counts.processed
        if not done.manual_steps.total.completed:
            # a file saved before the batch was over holds one less
            done.batches_that_stepped = done.optimizer_steps.total.completed
        elif self._batch_was_processed:
            done.batches_that_stepped += 1

    def load_position_state(self, state: dict[str, Any]) -> None:
        """Take back what `position_state` returned."""
        self._position = state.get("train")
        self._loop.progress.batches_that_stepped = state.get(
            "batches_that_stepped", self._loop.progress.batches_that_stepped
        )
        self._metrics = state.get("callback_metrics", {})
        self._loop.val_loop.load_position_state(state.get("val"))
        module = self._loop.trainer.lightning_module
        load_metric_states(module, state.get("metric_states", {}))
        self._loop.metrics.load_state_dict(state.get("metrics", []), module)
        if not self.is_mid_epoch:
            self._loop.metrics.reset()

    # ---- writing a checkpoint
    def position_state(self) -> dict[str, Any]:
        """Return where the training data stands, and what the unfinished epoch has logged."""
        loop = self._loop
        if loop.batches is None:
            return {}
        current = loop.progress.batches.current
        metrics = loop.trainer.callback_metrics
        of_validation = loop.val_loop.metrics.metric_paths() - loop.metrics.metric_paths()  # each one begins anew
        return {
            "train": loop.batches.state_dict(current.processed),
            "batches_that_stepped": loop.progress.batches_that_stepped + self._counts_soon(),
            "val": loop.val_loop.position_state(),
            "metrics": loop.metrics.state_dict(),
            "metric_states": metric_states(loop.trainer.lightning_module, without=of_validation),
            "callback_metrics": {k: v.item() for k, v in metrics.items() if isinstance(v, Tensor) and v.numel() == 1},
        }

    def _counts_soon(self) -> bool:
        """Tell whether the current batch stepped and is only counted once its last hooks and validation are over."""
        loop = self._loop
        epochs, batches = loop.progress.epochs.current, loop.progress.batches
        inside = epochs.started > epochs.completed and epochs.processed == epochs.completed
        if not inside or batches.current.processed == 0 or batches.current.ready != batches.current.processed:
            return False
        window = loop.trainer.accumulate_grad_batches
        return batches.is_last_batch or batches.current.processed % window == 0

    # ---- going on
    def classify(self) -> None:
        """Without a checkpoint, begin a new epoch, also where an earlier run broke off inside one."""
        if self._is_loaded:
            self._is_loaded = False
            return
        self.is_mid_epoch = self._batch_was_processed = self._epoch_was_processed = False
        for counts in (self._loop.progress.epochs.total, self._loop.progress.epochs.current):
            counts.ready = counts.started = counts.processed = counts.completed

    def load_position(self, batches: TrainBatches) -> None:
        """Put the training data to where it was."""
        batches.set_epoch(self._loop.progress.epochs.current.completed)
        if self._loader_states:
            batches.load_loader_states(self._loader_states)
        if self._position is not None:
            batches.load_state_dict(self._position)
        elif self.is_mid_epoch:
            batches.set_start(self._loop.progress.batches.current.processed)
        self._loader_states = self._position = None
        self._loop.val_loop.apply_position()

    def continue_interrupted(self) -> None:
        """Do what was left of the interrupted batch and epoch, with the random numbers it would have had."""
        loop = self._loop
        loop.trainer.restore_rng()
        if self._metrics:
            loop.trainer.metrics.recall(self._metrics)
            self._metrics = {}
        if self._epoch_was_processed:
            self._epoch_was_processed = False
            loop.finish_epoch_schedulers()
        if self._batch_was_processed:
            self._batch_was_processed = False
            loop.finish_batch()

    def consume(self) -> None:
        """The interrupted epoch goes on now; later ones begin normally."""
        self.is_mid_epoch = False
