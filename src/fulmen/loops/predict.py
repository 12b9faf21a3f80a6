"""Prediction."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.data.prefetch import EvalBatches
from fulmen.engine.loaders import seen_batch_indices
from fulmen.loops.evaluate import check_dataloader_idx, no_gradients, recorded_modes, restore_modes, step_arguments
from fulmen.loops.progress import Progress
from fulmen.loops.shards import evenly, interleaved, signal_agreement
from fulmen.loops.transfer import choose_transfer
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["PredictionLoop"]


class PredictionLoop:
    """Collects what `predict_step` returns for every batch.

    Args:
        trainer: The Trainer that runs it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.batches: EvalBatches | None = None
        self.progress = Progress()
        self.return_predictions = True
        self.current_batch_indices: list[int] = []
        self.epoch_batch_indices: list[list[list[int]]] = []
        self._predictions: list[list[Any]] = []

    @property
    def predictions(self) -> list[Any]:
        """What was predicted so far: per batch, or per dataloader and batch."""
        return self._predictions[0] if len(self._predictions) == 1 else self._predictions

    def run(self) -> list[Any] | None:
        """Predict once over all loaders; return the outputs, on the CPU."""
        self.load_data()
        batches = self.batches
        if batches is None or not batches.has_any:
            return None
        trainer, module = self.trainer, self.trainer.lightning_module
        self.progress.reset()
        self._predictions = [[] for _ in batches.num_batches]
        self.epoch_batch_indices = [[] for _ in batches.num_batches]
        modes = recorded_modes(module)
        module.on_predict_model_eval()
        trainer.metrics.activate(None)
        try:
            with no_gradients(trainer, inside_fit=False):
                self._predict(batches)
        finally:
            trainer.scope.hook = None
            restore_modes(modes)
        if not self.return_predictions:
            return None
        if trainer.world_size > 1:
            self._gather(batches)
        return self.predictions

    def _gather(self, batches: EvalBatches) -> None:
        """Give every rank the predictions of all data-parallel ranks, in the order of the dataset."""
        of_ranks = self.trainer.strategy.gather_shares(self._predictions)
        if batches.is_sharded:
            self._predictions = [interleaved(list(per_rank)) for per_rank in zip(*of_ranks, strict=True)]
            return
        rank_zero_warn(
            "`Trainer.predict` ran on loaders that share out the data by a sampler of their own, so the order of the"
            " dataset is not known. The predictions of all ranks are returned one rank after the other."
        )
        self._predictions = [[item for items in per_rank for item in items] for per_rank in zip(*of_ranks, strict=True)]

    def _predict(self, batches: EvalBatches) -> None:
        trainer, events, progress = self.trainer, self.trainer.events, self.progress
        num_loaders = len(batches.num_batches)
        step, arguments = step_arguments(trainer, "predict_step", num_loaders)
        trainer.profiler.connect(trainer.lightning_module, num_steps=sum(batches.num_batches))
        precision = trainer.strategy.precision_plugin
        context = nullcontext() if precision.is_plain else None
        to_device = choose_transfer(trainer)
        total, current, scope = progress.total, progress.current, trainer.scope
        loaded = self.batches
        events.on_predict_start()
        if self.batches is not None and self.batches is not loaded:  # a callback has changed the batch size
            batches = self.batches
        loaders = batches.loader.flattened
        records, keeps = trainer.wants_batch_indices, self.return_predictions or trainer.wants_predictions
        source, step = evenly(
            trainer, batches, "predict_step", step=step, arguments=arguments, to_device=to_device,
            make_context=nullcontext if context is not None else precision.predict_step_context,
        )  # fmt: skip
        signals, agreement = trainer.signals, signal_agreement(trainer, batches, source)
        events.on_predict_epoch_start()
        for batch, batch_idx, dataloader_idx in source:
            if to_device is not None:
                batch = to_device(batch, dataloader_idx)
            if records:
                self.current_batch_indices = seen_batch_indices(loaders[dataloader_idx], batch_idx)
                self.epoch_batch_indices[dataloader_idx].append(self.current_batch_indices)
            total.ready += 1
            current.ready += 1
            extra = (batch_idx, dataloader_idx) if num_loaders > 1 else (batch_idx,)
            events.on_predict_batch_start(batch, *extra)
            total.started += 1
            current.started += 1
            scope.hook = "predict_step"
            with context or precision.predict_step_context():
                output = step(*((batch, *extra)[:arguments]))
            scope.hook = None
            total.processed += 1
            current.processed += 1
            events.on_predict_batch_end(output, batch, *extra)
            total.completed += 1
            current.completed += 1
            if keeps:
                self._predictions[dataloader_idx].append(_to_cpu(output))
            if signals.received is not None if agreement is None else agreement.reached():
                trainer.obey_signal()
        if agreement is not None and agreement.answer():
            trainer.obey_signal()
        events.on_predict_epoch_end()
        events.on_predict_end()

    def load_data(self) -> None:
        """Ask for the loaders."""
        if self.batches is None:
            loader, limits = self.trainer.sources.eval_loaders("predict")
            wrap_next = self.trainer.profiled_next("[_PredictionLoop].predict_next")
            self.batches = EvalBatches(loader, limits, wrap_next=wrap_next, ranks=self.trainer.strategy)
            check_dataloader_idx(self.trainer.lightning_module, "predict", len(limits))

    def forget_data(self) -> None:
        """Let the loaders of an earlier run go."""
        if self.batches is not None:
            self.batches.close()
        self.batches = None

    @property
    def max_batches(self) -> list[int | float]:
        """Batches of each dataloader."""
        return [] if self.batches is None else list(self.batches.num_batches)

    @property
    def batch_progress(self) -> Progress:
        """Counters of batches."""
        return self.progress

    def state_dict(self) -> dict[str, Any]:
        """Return the counters under Lightning's keys."""
        return {"state_dict": {}, "batch_progress": self.progress.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.progress.load_state_dict(state["batch_progress"])


def _to_cpu(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.cpu()
    return apply_to_collection(output, Tensor, Tensor.cpu)
