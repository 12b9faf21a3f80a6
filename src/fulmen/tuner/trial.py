"""A few steps with one batch size, to see if memory suffices.

Nothing in it lets ranks wait for each other, so that one that runs out of memory does not leave the others waiting:

load the data and fetch the batches       all ranks, together
steps, without exchange of gradients      each rank for itself
did it fit?                               agreed over ranks
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fulmen.tuner.undo import Snapshot, own_parts
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.memory import garbage_collection_cuda, is_oom_error
from fulmen.utilities.signature_utils import is_param_in_hook_signature

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer
    from fulmen.tuner.settings import Place

__all__ = ["LIMITS", "Trial"]

LIMITS = {
    "fit": "limit_train_batches",
    "validate": "limit_val_batches",
    "test": "limit_test_batches",
    "predict": "limit_predict_batches",
}
_EVAL_WORDS = {"validate": "validation", "test": "test", "predict": "predict"}
_VAL_STEP = {"validate": "val", "test": "test", "predict": "predict"}


class Trial:
    """Tries batch sizes: optimizer steps in a fit, evaluation steps otherwise; the hooks of the module run with them.

    Args:
        trainer: The running Trainer.
        module: The module.
        place: The point of the run.
        snapshot: Of the state before; it is restored after each trial.
        steps: How many.

    Raises:
        MisconfigurationException: Ranks would wait for each other inside a step.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, place: Place, snapshot: Snapshot, *, steps: int
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._place = place
        self._snapshot = snapshot
        self._steps = steps
        self._fn = str(trainer.state.fn.value)  # type: ignore[union-attr]  # a run goes on
        self._most = math.inf
        self._seen: dict[int, tuple[int, ...]] = {}  # by size tried, those that the loaders have
        if trainer.strategy.has_dtensors or trainer.strategy.needs_shadow_steps:
            raise MisconfigurationException(
                f"`scale_batch_size` cannot work with `{type(trainer.strategy).__name__}`, whose ranks need each other"
                " in each layer: one that runs out of memory would leave the others waiting. Choose the batch size"
                " yourself; `Trainer.plan` tells what fits."
            )
        if trainer.world_size > 1 and any(isinstance(child, nn.SyncBatchNorm) for child in module.modules()):
            raise MisconfigurationException(
                "`scale_batch_size` cannot work with `sync_batchnorm=True` on several ranks: a rank that runs out of"
                " memory would leave the others waiting in a layer. Leave it out while searching."
            )

    def most(self) -> int:
        """Return the number of samples of this rank's loaders: larger batches do not exist."""
        return int(min(self._most, 2**62))

    def fits(self, size: int) -> bool:
        """Run the steps; tell whether memory sufficed, on all ranks.

        Args:
            size: The batch size, which is set already.
        """
        trainer, strategy = self._trainer, self._trainer.strategy
        failed = False
        with own_parts(trainer), ExitStack() as stack:
            self._place.begin()
            loop = self._loop()
            stack.callback(loop.forget_data)
            if self._fn == "fit":
                stack.callback(loop.release)
            loop.load_data()
            self._learn(loop.batches.loader.flattened, size)
            loop.batches.set_epoch(0)
            exchanges = strategy.num_exchanges
            source: Iterable[Any] = loop.batches
            if trainer.world_size > 1:
                source = list(islice(loop.batches, self._most_batches(loop)))  # ranks may ask each other for the end
                exchanges = strategy.num_exchanges
            try:
                (self._train if self._fn == "fit" else self._evaluate)(loop, islice(source, self._most_batches(loop)))
            except (RuntimeError, MemoryError) as error:
                if not is_oom_error(error):
                    raise
                failed = True
            # outside of `except`, whose traceback holds what there is no memory for
            if strategy.num_exchanges != exchanges:
                raise MisconfigurationException(_COMMUNICATES)
        self._snapshot.restore()
        garbage_collection_cuda()
        return not strategy.agree([int(failed)])[0]

    def _loop(self) -> Any:
        trainer = self._trainer
        if self._fn == "fit":
            trainer.limit_val_batches = 0
            return trainer.fit_loop
        setattr(trainer, LIMITS[self._fn], self._steps)
        return getattr(trainer, f"{self._fn}_loop")

    def _most_batches(self, loop: Any) -> int:
        return self._steps * (1 if self._fn == "fit" else max(len(loop.max_batches), 1))

    def _learn(self, loaders: list[Any], size: int) -> None:
        """Note how many samples there are, and see that the loaders follow the attribute."""
        samplers: list[Any] = [getattr(getattr(each, "batch_sampler", None), "sampler", None) for each in loaders]
        lengths = [len(sampler) if hasattr(sampler, "__len__") else 0 for sampler in samplers]
        if lengths and all(lengths):
            self._most = max(self._trainer.strategy.agree([max(lengths)])[0], 1)
        self._seen[size] = tuple(int(getattr(each, "batch_size", None) or 0) for each in loaders)
        if len(self._seen) > 1 and len(set(self._seen.values())) == 1 and any(self._seen[size]):
            raise MisconfigurationException(
                f"The search for a batch size has set {list(self._seen)}, but the dataloaders made batches of"
                f" {self._seen[size]} each time. Use the attribute in the hook that makes them, e.g."
                " `DataLoader(..., batch_size=self.batch_size)`."
            )

    # ---- the steps
    def _train(self, loop: Any, source: Iterator[Any]) -> None:
        trainer, events, store = self._trainer, self._trainer.events, self._trainer.fit_loop.metrics
        loop.told.add("not finite")
        with torch.enable_grad():
            self._module.zero_grad(set_to_none=True)
            loop.optimization = optimization = trainer.make_optimization()
            if trainer.world_size > 1:  # torch's wrapper communicates in forward and backward
                optimization.training_step, optimization.pre_backward = self._module.training_step, None
            trainer.metrics.activate(store)
            events.on_train_start()
            events.on_train_epoch_start()
            store.in_batch = True
            for batch, batch_idx, _ in source:
                batch = self._on_device(batch, 0)
                store.batch, store.batch_size = batch, None
                events.on_train_batch_start(batch, batch_idx)
                outputs = optimization.step(batch, batch_idx, due=True, divisor=1)
                events.on_train_batch_end(outputs, batch, batch_idx)

    def _evaluate(self, loop: Any, source: Iterator[Any]) -> None:
        trainer, events, word = self._trainer, self._trainer.events, _EVAL_WORDS[self._fn]
        precision, several = trainer.strategy.precision_plugin, len(loop.max_batches) > 1
        step = getattr(self._module, f"{word}_step")
        takes = 3 if several else 2 if is_param_in_hook_signature(step, "batch_idx", min_args=2) else 1
        context = getattr(precision, f"{_VAL_STEP[self._fn]}_step_context")
        store = getattr(loop, "metrics", None)
        trainer.metrics.activate(store)
        getattr(self._module, f"on_{word}_model_eval")()
        with torch.inference_mode() if trainer.inference_mode else torch.no_grad():
            for hook in ("start", "epoch_start"):
                getattr(events, f"on_{word}_{hook}")()
            if store is not None:
                store.num_dataloaders, store.in_batch = len(loop.max_batches), True
            for batch, batch_idx, dataloader_idx in source:
                batch = self._on_device(batch, dataloader_idx)
                if store is not None:
                    store.select(dataloader_idx)
                    store.batch, store.batch_size = batch, None
                extra = (batch_idx, dataloader_idx) if several else (batch_idx,)
                getattr(events, f"on_{word}_batch_start")(batch, *extra)
                trainer.scope.hook = f"{word}_step"
                with nullcontext() if precision.is_plain else context():
                    output = step(*((batch, *extra)[:takes]))
                trainer.scope.hook = None
                getattr(events, f"on_{word}_batch_end")(output, batch, *extra)

    def _on_device(self, batch: Any, dataloader_idx: int) -> Any:
        strategy = self._trainer.strategy
        batch = strategy.precision_plugin.convert_input(batch)
        return strategy.batch_to_device(batch, strategy.root_device, dataloader_idx)


_COMMUNICATES = (
    "`scale_batch_size` cannot work with a step that exchanges something between ranks: one that runs out of memory"
    " would leave the others waiting. Exchange in `on_train_batch_end`, or at the end of the epoch."
)
