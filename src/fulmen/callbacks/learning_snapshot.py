"""What a run has learned, kept in host memory to go back to."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.utilities.memory import copy_to_host
from fulmen.utilities.seed import collect_rng_states, set_rng_states
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["LearningSnapshot"]


class LearningSnapshot:
    """Weights, buffers, optimizers, schedulers that follow steps, and random numbers of this process.

    Counters, logged values, callbacks and schedulers that follow epochs are not part of it: they count what has
    happened, which does not become undone.

    Args:
        trainer: The running Trainer, at a point where no accumulation window is open.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.epoch = trainer.current_epoch
        self.global_step = trainer.global_step
        self._tensors = {name: copy_to_host(tensor) for name, tensor in _tensors_of(trainer).items()}
        self._optimizers = [
            apply_to_collection(optimizer.state_dict(), Tensor, copy_to_host) for optimizer in trainer.optimizers
        ]
        self._schedulers = [copy.deepcopy(scheduler.state_dict()) for scheduler in _schedulers_of(trainer)]
        self._rng = collect_rng_states()

    @torch.no_grad()
    def restore(self, trainer: Trainer) -> None:
        """Put the run back, in place; the snapshot can be used again."""
        for name, tensor in _tensors_of(trainer).items():
            if name in self._tensors:  # a buffer that came later has no earlier value
                tensor.copy_(self._tensors[name])
        for optimizer, state in zip(trainer.optimizers, self._optimizers, strict=True):
            # copied, as an optimizer works in place on what it gets
            optimizer.load_state_dict(apply_to_collection(state, Tensor, copy_to_host))
        for scheduler, state in zip(_schedulers_of(trainer), self._schedulers, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        set_rng_states(self._rng)


def _tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    module = trainer.lightning_module
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _schedulers_of(trainer: Trainer) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs if config.interval == "step"]
