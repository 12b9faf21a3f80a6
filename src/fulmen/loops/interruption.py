"""Going back to where a checkpoint can go on from, when a run is left inside a validation or a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fulmen.core.callback import Callback
from fulmen.core.module import LightningModule
from fulmen.loops.agreement import TIME_IS_UP
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.seed import collect_rng_states, set_rng_states

if TYPE_CHECKING:
    from torch import Tensor

    from fulmen.loops.fit import FitLoop
    from fulmen.trainer.trainer import Trainer

__all__ = ["BegunValidation", "back_to_window_start", "has_own_hook"]

_HOOKS_THAT_MAY_SWAP_WEIGHTS = ("on_validation_start", "on_validation_epoch_start", "on_validation_model_eval")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class BegunValidation:
    """A validation inside training that is not over: a run that is left in it repeats it whole when it is resumed.

    Args:
        loop: The training loop, as the validation begins.
    """

    def __init__(self, loop: FitLoop) -> None:
        self._loop = loop
        self._rng = collect_rng_states()
        self._position, self._counted = loop.val_loop.position_state(), loop.val_loop.progress_state()
        self._weights = _fingerprint(loop.trainer) if _may_swap_weights(loop.trainer) else None
        self._has_swapped_weights: bool | None = None
        self.log_positions = [logger.position() for logger in loop.trainer.loggers]
        self.history_position = loop.trainer.history.position()

    def may_be_left(self) -> bool:
        """Tell if the validation can be left because of what `trainer.signals` received, and resumed."""
        loop = self._loop
        if loop.trainer.signals.received == TIME_IS_UP and not loop.limits.minima_met(loop.progress):
            return False
        # else it ends first: gradients or weights of training are in no place where a checkpoint looks for them
        return not loop.has_started_window and not self._evaluates_other_weights()

    def _evaluates_other_weights(self) -> bool:
        """Tell if a hook has put other weights in the place of those that are trained, on any rank."""
        if self._has_swapped_weights is None:
            trainer, before = self._loop.trainer, self._weights
            is_other = before is not None and not torch.equal(before, _fingerprint(trainer))
            self._has_swapped_weights = bool(trainer.strategy.agree([int(is_other)], op="max")[0])
        return self._has_swapped_weights

    def rewind(self) -> None:
        """Put counters, random numbers and loaders back to the end of the batch before the validation.

        A checkpoint then looks like one from `on_train_batch_end`: what comes after that is still to be done.
        """
        for counts in (self._loop.progress.batches.total, self._loop.progress.batches.current):
            counts.completed -= 1
        self._loop.val_loop.rewind(self._position)
        self._loop.val_loop.progress.load_state_dict(self._counted)
        set_rng_states(self._rng)

    @contextmanager
    def not_begun(self) -> Iterator[None]:
        """Have a checkpoint that is saved inside the context look like one from before, while the validation goes on.

        What comes after the hook in which it is saved could not be made up for by a resumed run, which therefore
        repeats the validation.
        """
        loop, rng = self._loop, collect_rng_states()
        counters = (loop.progress.batches.total, loop.progress.batches.current)
        completed = [counts.completed for counts in counters]
        for counts in counters:
            counts.completed -= 1
        loop.rewound = self
        set_rng_states(self._rng)
        try:
            with loop.val_loop.held_at(self._position, self._counted):
                yield
        finally:
            set_rng_states(rng)
            loop.rewound = None
            for counts, number in zip(counters, completed, strict=True):
                counts.completed = number

    def count_batch(self) -> None:
        """Count the batch before the validation as done again, where the run does go on after `rewind`."""
        for counts in (self._loop.progress.batches.total, self._loop.progress.batches.current):
            counts.completed += 1


def has_own_hook(trainer: Trainer, hooks: Iterable[str]) -> bool:
    """Tell if a callback of the user's, not of this package, has one of some hooks.

    Args:
        trainer: The Trainer of the run.
        hooks: Their names; those that callbacks do not have are passed over.
    """
    others = [each for each in trainer.callbacks if not type(each).__module__.startswith("fulmen.")]
    known = [hook for hook in hooks if hasattr(Callback, hook)]
    return any(is_overridden(hook, each, Callback) for each in others for hook in known)


def back_to_window_start(loop: FitLoop, window: int) -> None:
    """Uncount the batches of an accumulation window that an error has ended, as its gradients are lost.

    Args:
        loop: The training loop.
        window: Batches in a window.
    """
    batches = loop.progress.batches
    lost = batches.current.processed % window
    for counts in (batches.total, batches.current):
        counts.processed -= lost
        counts.completed = min(counts.completed, counts.processed)


def _may_swap_weights(trainer: Trainer) -> bool:
    """Tell if a hook of the user's runs before the first validation batch; ours save both weights."""
    module = trainer.lightning_module
    hooks = _HOOKS_THAT_MAY_SWAP_WEIGHTS
    return any(is_overridden(hook, module, LightningModule) for hook in hooks) or has_own_hook(trainer, hooks)


def _fingerprint(trainer: Trainer) -> Tensor:
    """Return one sum of bits for each parameter; reading each weight once, it waits for no device."""
    sums = [
        each.detach().reshape(-1).view(_INTEGERS.get(each.element_size(), torch.int64)).sum(dtype=torch.int64)
        for each in trainer.lightning_module.parameters()
        if each.device.type != "meta"
    ]
    return torch.stack([each.to(sums[0].device) for each in sums]) if sums else torch.empty(0)
