"""Going on from a checkpoint: what was finished, what was interrupted, and where the data stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.core.module import LightningModule
from fulmen.loops.interruption import has_own_hook
from fulmen.metrics.objects import load_metric_states, metric_states
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.seed import set_rng_states

if TYPE_CHECKING:
    from fulmen.data.prefetch import TrainBatches
    from fulmen.loops.fit import FitLoop
    from fulmen.trainer.trainer import Trainer

__all__ = ["FitResume"]

_HOOKS_INSIDE_BATCH = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_exception",
)


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
        self._was_validated = False
        self._is_loaded = False
        self._position: dict[str, Any] | None = None
        self._epoch_of_last_load: int | None = None
        self._rng_at_request: dict[str, Any] | None = None
        self._loader_states: list[Any] | None = None
        self._shown: dict[str, dict[str, float]] = {}

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
        self._was_validated = state.get("is_validated", False)
        self._epoch_of_last_load = state.get("epoch_of_last_load")
        self._rng_at_request = (self._position or {}).get("rng_at_request")
        self._loop.progress.batches_that_stepped = state.get(
            "batches_that_stepped", self._loop.progress.batches_that_stepped
        )
        self._shown = {kind: state[kind] for kind in ("callback_metrics", "logged_metrics") if kind in state}
        if "val" in state:
            self._loop.val_loop.load_position_state(state["val"])
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
        of_validation = loop.val_loop.metrics.metric_paths() - loop.metrics.metric_paths()  # each one begins anew
        return {
            "train": loop.batches.state_dict(current.processed, is_over=not self._is_inside_epoch()),
            "epoch_of_last_load": loop.epoch_of_last_load,
            "batches_that_stepped": loop.progress.batches_that_stepped + self._counts_soon(),
            "val": loop.val_loop.position_state(),
            "metrics": loop.metrics.state_dict(),
            "metric_states": metric_states(loop.trainer.lightning_module, without=of_validation),
            "is_validated": self._is_inside_epoch() and loop.val_loop.is_ending,
            **loop.trainer.metrics.shown(),
        }

    def _counts_soon(self) -> bool:
        """Tell whether the current batch stepped and is only counted once its last hooks and validation are over."""
        loop = self._loop
        batches = loop.progress.batches
        current = batches.current
        if not self._is_inside_epoch() or current.processed == 0 or current.ready != current.processed:
            return False
        window = loop.trainer.accumulate_grad_batches
        return batches.is_last_batch or batches.current.processed % window == 0

    def _is_inside_epoch(self) -> bool:
        epochs = self._loop.progress.epochs.current
        return epochs.started > epochs.completed and epochs.processed == epochs.completed

    def announce(self, batches: TrainBatches, window: int) -> None:
        """Tell the training data how far a position may lie behind what was handed out, in the epoch that begins.

        Args:
            batches: The training data.
            window: Batches of an accumulation window: an error makes all of an unfinished one count as not done.
        """
        batches.num_behind = window
        batches.notes_requests = _may_save_inside_batch(self._loop.trainer)

    # ---- going on
    def classify(self) -> None:
        """Without a checkpoint, begin a new epoch, also where an earlier run broke off inside one."""
        if self._is_loaded:
            self._is_loaded = False
            return
        self.is_mid_epoch = self._batch_was_processed = self._epoch_was_processed = self._was_validated = False
        for counts in (self._loop.progress.epochs.total, self._loop.progress.epochs.current):
            counts.ready = counts.started = counts.processed = counts.completed

    def load_position(self, batches: TrainBatches) -> None:
        """Put the training data to where it was."""
        batches.set_epoch(self._loop.progress.epochs.current.completed)
        if self._loader_states:
            batches.load_loader_states(self._loader_states)
        if self._position is not None:
            batches.load_state_dict(self._position)
            if self.is_mid_epoch:  # another number where the batches have another size now
                done = self._loop.progress.batches.current
                done.ready = done.started = done.completed = done.processed = batches.num_consumed
        elif self.is_mid_epoch:
            batches.set_start(self._loop.progress.batches.current.processed)
        if self._epoch_of_last_load is not None:
            self._loop.epoch_of_last_load = self._epoch_of_last_load
        self._loader_states = self._position = self._epoch_of_last_load = None
        self._loop.val_loop.apply_position()

    def continue_interrupted(self) -> None:
        """Do what was left of the interrupted batch and epoch, with the random numbers it would have had."""
        loop = self._loop
        self._restore()
        if self._rng_at_request is not None:  # the batch in which the checkpoint was taken begins anew
            set_rng_states(self._rng_at_request)
            self._rng_at_request = None
        self.finish_schedulers()
        if self._batch_was_processed or self._was_validated:
            loop.finish_batch(is_validated=self._was_validated)
            self._batch_was_processed = self._was_validated = False
        if self.ends_last_epoch:
            loop.batches.replay()  # type: ignore[union-attr]  # loaded; what is saved now tells where its loaders stand
            loop.finish_epoch()

    @property
    def ends_last_epoch(self) -> bool:
        """Whether the checkpoint was taken at the last step of training, but before the end of its epoch."""
        return self.is_mid_epoch and self._loop.limits.steps_reached(self._loop.progress) is not None

    def show_finished(self, batches: TrainBatches) -> None:
        """Where training was over when the checkpoint was taken: put everything to where it ended."""
        self.load_position(batches)
        self._restore()
        if not self.is_mid_epoch:  # else less was asked for than has been done, and there is nothing to be equal to
            batches.replay()
        self.finish_schedulers()
        trainer = self._loop.trainer
        for callback in trainer.checkpoint_callbacks:
            if callback.state_dict().get("postponed"):  # the run was killed before the end of training wrote it
                callback.on_train_start(trainer, trainer.lightning_module)
                callback.on_train_end(trainer, trainer.lightning_module)

    def _restore(self) -> None:
        trainer = self._loop.trainer
        trainer.restore_rng()
        trainer.metrics.recall(self._shown)
        self._shown = {}

    def finish_schedulers(self) -> None:
        """Step the schedulers that wait for an epoch's metrics, if the checkpoint was taken just before."""
        if not self._epoch_was_processed:
            return
        self._epoch_was_processed = False
        completed = self._loop.progress.epochs.current
        completed.completed -= 1
        self._loop.schedulers.after_epoch()
        completed.completed += 1

    def consume(self) -> None:
        """The interrupted epoch goes on now; later ones begin normally."""
        self.is_mid_epoch = False


def _may_save_inside_batch(trainer: Trainer) -> bool:
    """Tell if a checkpoint may be taken while a batch is worked on; our own callbacks do that only after errors."""
    if is_overridden("on_train_batch_start", trainer.lightning_module, LightningModule):
        return True
    if any(getattr(each, "save_on_exception", True) for each in trainer.checkpoint_callbacks):
        return True
    return has_own_hook(trainer, _HOOKS_INSIDE_BATCH)
