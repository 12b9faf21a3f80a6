"""Counters of a run: what was begun, what is done, and what a checkpoint says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counts", "FitProgress", "Progress"]

_BATCH_KEYS = ("ready", "completed", "started", "processed")
_STEP_KEYS = ("ready", "completed")
_ZERO_GRAD_KEYS = ("ready", "completed", "started")


@dataclass(slots=True)
class Counts:
    """How many items reached each point: about to begin, begun, worked on, all hooks done."""

    ready: int = 0
    completed: int = 0
    started: int = 0
    processed: int = 0

    def reset(self) -> None:
        """Count from zero again."""
        self.ready = self.completed = self.started = self.processed = 0

    def state_dict(self, keys: tuple[str, ...] = _BATCH_KEYS) -> dict[str, int]:
        """Return the counts named by `keys`."""
        return {key: getattr(self, key) for key in keys}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take back what `state_dict` returned; absent counts stay."""
        for key, value in state.items():
            setattr(self, key, int(value))


@dataclass(slots=True)
class Progress:
    """Counts over the whole run, and since the last reset (an epoch, an evaluation)."""

    total: Counts = field(default_factory=Counts)
    current: Counts = field(default_factory=Counts)
    is_last_batch: bool = False
    keys: tuple[str, ...] = _BATCH_KEYS

    def reset_current(self) -> None:
        """Begin a new epoch."""
        self.current.reset()
        self.is_last_batch = False

    def reset(self) -> None:
        """Begin a new run."""
        self.total.reset()
        self.reset_current()

    def increment(self, key: str) -> None:
        """Count one item at one point."""
        setattr(self.total, key, getattr(self.total, key) + 1)
        setattr(self.current, key, getattr(self.current, key) + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return `total` and `current`."""
        return {"total": self.total.state_dict(self.keys), "current": self.current.state_dict(self.keys)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.total.load_state_dict(state["total"])
        self.current.load_state_dict(state["current"])
        self.is_last_batch = bool(state.get("is_last_batch", False))


@dataclass(slots=True)
class FitProgress:
    """All counters of a fit."""

    epochs: Progress = field(default_factory=Progress)
    batches: Progress = field(default_factory=Progress)
    optimizer_steps: Progress = field(default_factory=lambda: Progress(keys=_STEP_KEYS))
    zero_grads: Progress = field(default_factory=lambda: Progress(keys=_ZERO_GRAD_KEYS))
    manual_steps: Progress = field(default_factory=lambda: Progress(keys=_STEP_KEYS))
    scheduler_steps: Progress = field(default_factory=lambda: Progress(keys=_STEP_KEYS))
    batches_that_stepped: int = 0
    samples_begun: int = 0  # over all ranks; counted only if a logger asks for it
    samples_before: int = 0  # without the current batch
    micro_batch_size: int | None = None  # of `accumulate_grad_batches="auto"`, once memory has run out

    @property
    def global_step(self) -> int:
        """Completed optimizer steps over all optimizers."""
        return self.optimizer_steps.total.completed + self.manual_steps.total.completed

    @property
    def samples(self) -> int:
        """Training samples of the batches that are done, over all ranks; 0 unless they are counted."""
        current = self.batches.current
        return self.samples_begun if current.ready == current.processed else self.samples_before

    def begin_epoch(self) -> None:
        """Reset what counts within an epoch."""
        self.batches.reset_current()
        self.optimizer_steps.reset_current()
        self.zero_grads.reset_current()
        self.manual_steps.reset_current()
        self.scheduler_steps.reset_current()

    def state_dict(self) -> dict[str, Any]:
        """Return the counters under the keys that Lightning's checkpoints use."""
        return {
            "epoch_loop.state_dict": {
                "_batches_that_stepped": self.batches_that_stepped,
                **({"samples": self.samples} if self.samples else {}),
            },
            "epoch_loop.batch_progress": {**self.batches.state_dict(), "is_last_batch": self.batches.is_last_batch},
            "epoch_loop.scheduler_progress": self.scheduler_steps.state_dict(),
            "epoch_loop.automatic_optimization.state_dict": self._automatic_state(),
            "epoch_loop.automatic_optimization.optim_progress": {
                "optimizer": {"step": self.optimizer_steps.state_dict(), "zero_grad": self.zero_grads.state_dict()}
            },
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": self.manual_steps.state_dict(),
            "epoch_progress": self.epochs.state_dict(),
        }

    def _automatic_state(self) -> dict[str, int]:
        return {} if self.micro_batch_size is None else {"micro_batch_size": self.micro_batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, or what Lightning wrote."""
        self.micro_batch_size = state.get("epoch_loop.automatic_optimization.state_dict", {}).get("micro_batch_size")
        self.epochs.load_state_dict(state["epoch_progress"])
        self.batches.load_state_dict(state["epoch_loop.batch_progress"])
        self.scheduler_steps.load_state_dict(state["epoch_loop.scheduler_progress"])
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        self.optimizer_steps.load_state_dict(optimizer["step"])
        self.zero_grads.load_state_dict(optimizer["zero_grad"])
        self.manual_steps.load_state_dict(state["epoch_loop.manual_optimization.optim_step_progress"])
        self.samples_begun = self.samples_before = int(state["epoch_loop.state_dict"].get("samples", 0))
        self.batches_that_stepped = int(state["epoch_loop.state_dict"].get("_batches_that_stepped", self.global_step))
