"""What a tortured run can look like, and how it can be interrupted: one table, drawn from at random."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

__all__ = ["CHOICES", "HOOKS", "KINDS", "LOADERS", "Interruption", "Setting", "draw_interruption", "draw_setting"]

LOADERS = (
    "plain",
    "workers",
    "persistent workers",
    "prefetch factor 4",
    "own generator",
    "own sampler",
    "own batch sampler",
    "weighted sampler",
    "combined min_size",
    "combined max_size",
    "combined max_size_cycle",
    "stateful",
    "stateful workers",
    "stateful iterable",
    "iterable",
    "iterable workers",
    "iterable with state",
    "no DataLoader",
)
"""Kinds of training loaders; with workers where the name says so."""

_WITH_WORKERS = {"workers", "persistent workers", "prefetch factor 4", "stateful workers", "iterable workers"}

KINDS = ("exception", "SIGTERM", "SIGINT", "kill -9", "kill -9 at any time")
"""Kinds of interruptions; all but the last one happen in a hook, so that they can be repeated."""

HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "training_step",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_save_checkpoint",
    "getitem",
    "log_metrics",
    "rename",
)
"""Where an interruption strikes. The last three are in a dataset, in a logger, and just before a file gets its name."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "loader": LOADERS,
    "sampler": ("torch", "numpy", "python", "generator", "epoch"),
    "augment": ("none", "torch", "random", "numpy", "all"),
    "seed_workers": (False, True),
    "accumulate": (1, 1, 3),
    "optimizers": ("adamw", "sgd", "two by hand"),
    "scheduler": ("none", "StepLR per step", "StepLR per epoch", "plateau per epoch", "plateau per step", "OneCycleLR"),
    "validate": ("off", "epoch", "every second epoch", "3 batches", "half", "5 batches across epochs"),
    "sanity_steps": (0, 2),
    "precision": ("32-true", "32-true", "bf16-mixed", "scaled"),
    "clip": (None, 0.5),
    "limit_train": (1.0, 1.0, 5),
    "stop": ("epochs", "steps"),
    "reload_every": (0, 0, 1),
    "log_every": (1, 2, 3),
    "flush_every": (1, 3, 100),
    "averaged": (False, True),
    "ema": (False, True),
    "save": ("1 step", "2 steps", "5 steps", "1 epoch", "30 ms"),
    "save_last": (True, "link"),
    "monitor": (None, "val_loss"),
    "asynchronous": (False, False, True),
}
"""For each field of a `Setting`, what it can be; one that comes twice comes more often."""


@dataclass(frozen=True)
class Setting:
    """One training run. See `CHOICES` for the values."""

    loader: str = "plain"
    sampler: str = "torch"
    augment: str = "all"
    seed_workers: bool = False
    accumulate: int = 1
    optimizers: str = "adamw"
    scheduler: str = "none"
    validate: str = "epoch"
    sanity_steps: int = 0
    precision: str = "32-true"
    clip: float | None = None
    limit_train: float | int = 1.0
    stop: str = "epochs"
    reload_every: int = 0
    log_every: int = 1
    flush_every: int = 3
    averaged: bool = False
    ema: bool = False
    save: str = "2 steps"
    save_last: bool | str = True
    monitor: str | None = None
    asynchronous: bool = False
    seed: int = 0

    @property
    def num_workers(self) -> int:
        """Worker processes of the training loader."""
        return 2 if self.loader in _WITH_WORKERS else 0

    @property
    def has_length(self) -> bool:
        """Whether the training loader knows how many batches it has."""
        return "iterable" not in self.loader

    def made_possible(self) -> Setting:
        """Return the setting without what contradicts itself, by changing as little as can be."""
        changes: dict[str, Any] = {}
        if self.optimizers == "two by hand":
            changes |= {"accumulate": 1, "clip": None}
            if self.scheduler.startswith("plateau") or self.scheduler == "OneCycleLR":
                changes["scheduler"] = "StepLR per step"
        if self.scheduler == "OneCycleLR" and not self.has_length:
            changes["scheduler"] = "StepLR per step"
        if self.loader != "own sampler":
            changes["sampler"] = "torch"
        if not self.has_length and self.validate == "half":
            changes["validate"] = "3 batches"
        if self.validate == "off":
            changes["monitor"] = None
            if self.scheduler == "plateau per epoch":
                changes["scheduler"] = "StepLR per epoch"
        if self.validate in ("every second epoch", "5 batches across epochs") and self.scheduler == "plateau per epoch":
            changes["scheduler"] = "StepLR per epoch"  # it would step before there is anything to look at
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        """Name what differs from the defaults."""
        parts = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"Setting({', '.join(parts)})"


@dataclass(frozen=True)
class Interruption:
    """What ends a run before its time.

    Attributes:
        kind: One of `KINDS`.
        hook: Where; see `HOOKS`. Empty if the kind is bound to a time.
        steps: It strikes at the first such hook after this number of training steps.
        share: For a kill at any time: when, as a share of the time that the uninterrupted run took.
    """

    kind: str
    hook: str = ""
    steps: int = 0
    share: float = 0.0

    def __str__(self) -> str:
        """Tell in words."""
        when = f"in {self.hook} after {self.steps} steps" if self.hook else f"after {self.share:.2f} of the time"
        return f"{self.kind} {when}"


def draw_setting(seed: int, **given: Any) -> Setting:
    """Return the setting that belongs to a seed.

    Args:
        seed: Any number; loaders take turns, so that few runs have all of them.
        given: Fields that are not drawn.
    """
    rng = random.Random(seed)
    drawn = {name: rng.choice(choices) for name, choices in CHOICES.items()}
    drawn["loader"] = LOADERS[seed % len(LOADERS)]
    return Setting(seed=seed, **(drawn | given)).made_possible()


def draw_interruption(
    rng: random.Random, kinds: tuple[str, ...], places: dict[str, list[int]], *, after: int
) -> Interruption:
    """Return a random interruption.

    Args:
        rng: What chooses.
        kinds: Which kinds are wanted.
        places: For each hook, after which training steps it comes.
        after: Training steps that are behind.
    """
    kind = rng.choice(kinds)
    to_come = {hook: [step for step in steps if step >= after] for hook, steps in places.items()}
    hooks = [hook for hook in sorted(to_come) if to_come[hook]]
    if kind == "kill -9 at any time" or not hooks:
        return Interruption("kill -9 at any time", share=rng.random())
    hook = rng.choice(hooks)
    return Interruption(kind, hook, rng.choice(to_come[hook]))
