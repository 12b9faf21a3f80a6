"""Validation and testing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fulmen.core.module import LightningModule
from fulmen.data.prefetch import EvalBatches
from fulmen.loops.progress import Progress
from fulmen.loops.shards import evenly, signal_agreement
from fulmen.loops.transfer import choose_transfer
from fulmen.metrics.store import MetricStore
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.signature_utils import is_param_in_hook_signature

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = [
    "EvaluationLoop",
    "ValidationLeft",
    "check_dataloader_idx",
    "no_gradients",
    "recorded_modes",
    "restore_modes",
    "step_arguments",
]

_HOOK_WORD = {"validate": "validation", "test": "test"}
_LOADER_WORD = {"validate": "val", "test": "test"}


class ValidationLeft(Exception):
    """Leaves a validation because of a signal or the time limit; training catches it, saves, and obeys."""


class EvaluationLoop:
    """Runs a module over validation or test data; owns the counters and what is logged meanwhile.

    Args:
        trainer: The Trainer that runs it.
        stage: `"validate"` or `"test"`.
        inside_fit: Whether this is the validation within training.
    """

    def __init__(self, trainer: Trainer, stage: str, *, inside_fit: bool = False) -> None:
        self.trainer = trainer
        self.stage = stage
        self.inside_fit = inside_fit
        # ---- parts, made anew by each run
        self.batches: EvalBatches | None = None
        # ---- state
        self.progress = Progress()
        self.metrics = MetricStore(is_training=False)
        self._epoch_of_last_load: float = -1
        self._position: dict[str, Any] | None = None
        self._was_without_loaders = False
        self._rewound_to: dict[str, Any] | None = None  # what a checkpoint is to hold of an evaluation that was left
        self._held: tuple[dict[str, Any] | None] | None = None  # the same of one that goes on
        self._rows: list[int] = []
        self.is_ending = False  # in its last hooks
        # shows what `validate` or `test` returns in place of the table: (results, stage)
        self.show_results: Callable[[list[dict[str, float]], str], None] | None = None

    def run(self, *, max_batches: list[int | float] | None = None) -> list[dict[str, float]]:
        """Evaluate once; return the epoch's metrics, one dict per dataloader.

        Args:
            max_batches: Bounds per dataloader that replace the usual ones (the sanity check).
        """
        self.load_data()
        batches = self.batches
        if batches is not None and max_batches is not None:
            batches = EvalBatches(batches.loader, max_batches, ranks=self.trainer.strategy)
        if batches is None or not batches.has_any:
            return []
        trainer, module, board, word = (
            self.trainer,
            self.trainer.lightning_module,
            self.trainer.metrics,
            _HOOK_WORD[self.stage],
        )
        previous = board.activate(self.metrics)
        stage_before = trainer.enter_stage(self.stage)
        modes = recorded_modes(module)
        set_modes = getattr(module, f"on_{word}_model_eval")
        try:
            with no_gradients(trainer, inside_fit=self.inside_fit):
                set_modes()
                results = self._evaluate(batches, word)
        except BaseException:
            restore_modes(modes)
            raise
        finally:
            trainer.enter_stage(stage_before)
            board.activate(previous)
            trainer.scope.hook = None
        if is_overridden(f"on_{word}_model_train", module, LightningModule):
            getattr(module, f"on_{word}_model_train")()
        else:
            restore_modes(modes)
        return results

    def _evaluate(self, batches: EvalBatches, word: str) -> list[dict[str, float]]:
        trainer, events, store, board = self.trainer, self.trainer.events, self.metrics, self.trainer.metrics
        scope, progress, signals = trainer.scope, self.progress, trainer.signals
        num_loaders = len(batches.num_batches)
        self._begin(num_loaders)
        on_batch_start, on_batch_end = (getattr(events, f"on_{word}_batch_{end}") for end in ("start", "end"))
        step_name = f"{word}_step"
        step, arguments = step_arguments(trainer, step_name, num_loaders)
        if not self.inside_fit:
            trainer.profiler.connect(trainer.lightning_module, num_steps=sum(batches.num_batches))
        precision = trainer.strategy.precision_plugin
        context = nullcontext() if precision.is_plain else None
        make_context = precision.val_step_context if word == "validation" else precision.test_step_context
        to_device = choose_transfer(trainer)
        total, current = progress.total, progress.current
        current_loader = -1
        batches = self._announced(getattr(events, f"on_{word}_start"), batches)
        source, step = evenly(
            trainer, batches, step_name, step=step, arguments=arguments, to_device=to_device,
            make_context=nullcontext if context is not None else make_context,
        )  # fmt: skip
        agreement = signal_agreement(trainer, batches, source)
        getattr(events, f"on_{word}_epoch_start")()
        store.in_batch = True
        for batch, batch_idx, dataloader_idx in source:
            if dataloader_idx != current_loader:
                board.finish_dataloader()
                store.select(dataloader_idx)
                current_loader = dataloader_idx
            if to_device is not None:
                batch = to_device(batch, dataloader_idx)
            store.batch, store.batch_size = batch, None
            total.ready += 1
            current.ready += 1
            progress.is_last_batch = batch_idx + 1 == batches.num_batches[dataloader_idx]
            extra = (batch_idx, dataloader_idx) if num_loaders > 1 else (batch_idx,)
            on_batch_start(batch, *extra)
            total.started += 1
            current.started += 1
            scope.hook = step_name
            with context or make_context():
                output = step(*((batch, *extra)[:arguments]))
            scope.hook = None
            total.processed += 1
            current.processed += 1
            on_batch_end(output, batch, *extra)
            total.completed += 1
            current.completed += 1
            if store.logs_steps:
                self._publish_batch(dataloader_idx)
            if signals.received is not None if agreement is None else agreement.reached():
                self._obey_signal()
        if agreement is not None and agreement.answer():
            self._obey_signal()
        return self._finish(word, num_loaders)

    def _announced(self, event: Callable[[], Any], batches: EvalBatches) -> EvalBatches:
        """Tell that the evaluation starts; return its batches, others if a callback has changed their size."""
        loaded = self.batches
        event()
        return batches if self.batches is None or self.batches is loaded else self.batches

    def _obey_signal(self) -> None:
        trainer = self.trainer
        if not self.inside_fit:
            trainer.obey_signal()
        elif trainer.sanity_checking:
            if trainer.signals.received != trainer.signals.requeue_signal:  # else training saves after its first step
                trainer.obey_signal()
        elif trainer.fit_loop.validation is not None and trainer.fit_loop.validation.may_be_left():
            raise ValidationLeft

    def _begin(self, num_loaders: int) -> None:
        store = self.metrics
        self._rewound_to = None
        store.leave_batches()
        store.reset()
        store.num_dataloaders = num_loaders
        self.progress.reset_current()
        if not self.inside_fit:
            self.progress.reset()
        if len(self._rows) != num_loaders:
            self._rows = [0] * num_loaders
        if self.batches is not None:
            self.batches.set_epoch(self.trainer.current_epoch)

    def _finish(self, word: str, num_loaders: int) -> list[dict[str, float]]:
        trainer, events, board = self.trainer, self.trainer.events, self.trainer.metrics
        board.refresh()
        self.metrics.leave_batches()
        board.sync()
        getattr(events, f"on_{word}_epoch_end")()
        board.sync()
        if not trainer.sanity_checking:
            with trainer.profile("log_metrics"):
                board.publish_epoch(trainer.fit_loop.batches_that_stepped, trainer.current_epoch)
        results = board.evaluation_results(num_loaders)
        self.is_ending = True
        try:
            getattr(events, f"on_{word}_end")()
        finally:
            self.is_ending = False
        board.refresh()
        self.metrics.reset()
        return results

    def _publish_batch(self, dataloader_idx: int) -> None:
        """Send a row per batch; its x axis is the batches of this loader evaluated so far, over all epochs."""
        if not self.trainer.sanity_checking:
            self.trainer.metrics.publish_step(self._rows[dataloader_idx], None)
            self._rows[dataloader_idx] += 1

    # ---- data
    def load_data(self) -> None:
        """Ask for the loaders, the first time and when they are due again."""
        trainer = self.trainer
        if self.batches is not None and (trainer.sanity_checking or not self._is_due_again(self._epoch_of_last_load)):
            return
        if self.batches is not None:
            self.batches.close()
        if self._is_loaded_later() and not trainer.sanity_checking:
            self._position = None  # of loaders that give way to these
        self._was_without_loaders = False
        loader, limits = trainer.sources.eval_loaders(_LOADER_WORD[self.stage])
        wrap_next = trainer.profiled_next("[_EvaluationLoop].val_next")
        self.batches = EvalBatches(loader, limits, wrap_next=wrap_next, ranks=trainer.strategy)
        self._epoch_of_last_load = -math.inf if self._is_only_for_the_sanity_check() else trainer.current_epoch
        self._rows = [0] * len(limits)
        check_dataloader_idx(trainer.lightning_module, _HOOK_WORD[self.stage], len(self.batches.num_batches))
        if not trainer.sanity_checking:  # the check draws batches, too
            self.apply_position()

    def load_data_again(self) -> None:
        """Ask for the loaders before training, if a run that is resumed had them where it was left."""
        if not self._is_loaded_later():
            self.load_data()

    def _is_loaded_later(self) -> bool:
        """Tell whether the run that is resumed had no loaders where it was left, or was about to make new ones."""
        if self._position is None:
            return self._was_without_loaders
        return self._is_due_again(self._position.get("epoch_of_last_load", math.inf))

    def _is_due_again(self, epoch_of_last_load: float) -> bool:
        every = self.trainer.reload_dataloaders_every_n_epochs
        return self.inside_fit and every > 0 and self.trainer.current_epoch - epoch_of_last_load >= every

    def _is_only_for_the_sanity_check(self) -> bool:
        every = self.trainer.check_val_every_n_epoch
        return self.trainer.sanity_checking and every is not None and (self.trainer.current_epoch + 1) % every != 0

    def forget_data(self) -> None:
        """Let the loaders of an earlier run go."""
        if self.batches is not None:
            self.batches.close()
        self.batches = self._position = self._rewound_to = None
        self._was_without_loaders = False

    @property
    def max_batches(self) -> list[int | float]:
        """Batches of each dataloader."""
        return [] if self.batches is None else list(self.batches.num_batches)

    @property
    def batch_progress(self) -> Progress:
        """Counters of batches."""
        return self.progress

    # ---- checkpoints
    def progress_state(self) -> dict[str, Any]:
        """Return the counters."""
        return {**self.progress.state_dict(), "is_last_batch": self.progress.is_last_batch}

    def position_state(self) -> dict[str, Any] | None:
        """Return what the loaders need to give the same batches again, and how many rows each has sent."""
        if self._held is not None:
            return self._held[0]
        if self._rewound_to is not None:
            return self._rewound_to
        if self.batches is None:
            return self._position  # of loaders that were not needed since
        return {
            **self.batches.state_dict(),
            "rows": list(self._rows),
            "epoch_of_last_load": self._epoch_of_last_load,
        }

    def load_position_state(self, state: dict[str, Any] | None) -> None:
        """Keep what `position_state` returned until the loaders are there."""
        self._position = state
        self._was_without_loaders = state is None

    def apply_position(self) -> None:
        """Let the loaders go on as the checkpoint's would have."""
        if self.batches is not None and self._position is not None:
            self.batches.load_state_dict(self._position)
            self._rows = list(self._position.get("rows", self._rows))
            self._epoch_of_last_load = self._position.get("epoch_of_last_load", self._epoch_of_last_load)
            self._position = None

    def rewind(self, position: dict[str, Any] | None) -> None:
        """Put the loaders back to where an evaluation found them, as `position_state` told before."""
        if position is None:
            self.forget_data()
        else:
            self.load_position_state(position)
            self.apply_position()
            self._rewound_to = position

    @contextmanager
    def held_at(self, position: dict[str, Any] | None, counted: dict[str, Any]) -> Iterator[None]:
        """Have a checkpoint that is saved inside the context hold an earlier state, while the evaluation goes on.

        Args:
            position: What `position_state` returned then.
            counted: What `progress_state` returned then.
        """
        now, self._held = self.progress_state(), (position,)
        self.progress.load_state_dict(counted)
        try:
            yield
        finally:
            self._held = None
            self.progress.load_state_dict(now)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters under Lightning's keys."""
        return {"state_dict": {}, "batch_progress": self.progress_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.progress.load_state_dict(state["batch_progress"])


@contextmanager
def no_gradients(trainer: Trainer, *, inside_fit: bool) -> Iterator[None]:
    """Switch gradients off; inference mode only where no tensor of it can get into training."""
    inference = trainer.inference_mode and not inside_fit and trainer.strategy.allows_inference_mode
    context: AbstractContextManager[Any] = torch.inference_mode() if inference else torch.no_grad()
    with context:
        yield


def step_arguments(trainer: Trainer, name: str, num_dataloaders: int) -> tuple[Callable[..., Any], int]:
    """Return a step method, called through the strategy, and how many of its three arguments it takes."""
    method = getattr(trainer.lightning_module, name)
    strategy = trainer.strategy
    step = trainer.profiled(f"[Strategy]{type(strategy).__name__}.{name}", getattr(strategy, name))
    if num_dataloaders > 1:
        return step, 3
    return step, 2 if is_param_in_hook_signature(method, "batch_idx", min_args=2) else 1


def check_dataloader_idx(module: LightningModule, word: str, num_dataloaders: int) -> None:
    """Check the signatures of a step and of the hooks around it against the number of dataloaders.

    Args:
        module: The module that has them.
        word: `"validation"`, `"test"` or `"predict"`.
        num_dataloaders: Number of dataloaders.

    Raises:
        RuntimeError: One lacks the dataloader index where there are several loaders, or demands it for one.
    """
    for name in (f"{word}_step", f"on_{word}_batch_start", f"on_{word}_batch_end"):
        parameters = inspect.signature(getattr(module, name)).parameters
        parameter = parameters.get("dataloader_idx")
        takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
        if num_dataloaders > 1 and parameter is None and not takes_any:
            given = ", ".join(["self", *parameters])
            raise RuntimeError(
                f"There are {num_dataloaders} dataloaders, but `{name}` does not take `dataloader_idx`."
                f" Add it as the last parameter: `def {name}({given}, dataloader_idx=0)`."
            )
        if num_dataloaders == 1 and parameter is not None and parameter.default is inspect.Parameter.empty:
            raise RuntimeError(
                f"`{name}` demands `dataloader_idx`, but there is only one dataloader."
                " Remove the parameter, or give it a default: `dataloader_idx=0`."
            )


def recorded_modes(module: nn.Module) -> dict[nn.Module, bool]:
    """Return which submodules are in training mode."""
    return {child: child.training for child in module.modules()}


def restore_modes(modes: dict[nn.Module, bool]) -> None:
    """Give every submodule the mode back that it had."""
    for child, training in modes.items():
        if child.training != training:
            child.training = training
