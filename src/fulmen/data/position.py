"""Where a loader stands inside an epoch, as plain data, so that a later run can go on from the very next batch.

An epoch is repeated from its start: with the generators as they were just before the loader was opened, a sampler
gives the same order again and a worker the same augmentation. The batches that were consumed are loaded once more and
dropped.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import collect_rng_states, isolate_rng

__all__ = [
    "LoaderPosition",
    "generator_states",
    "has_live_workers",
    "is_stateful",
    "plain_rng_states",
    "raw_rng_states",
    "set_generator_states",
    "start_workers",
]


@dataclass(slots=True)
class LoaderPosition:
    """The position of a pass over loaders.

    Attributes:
        epoch: The epoch that the pass belongs to.
        batches: Number of batches handed to the loop.
        is_ahead: One batch more than that was fetched (loaders without length, to know which batch is the last).
        is_over: The last of those batches was announced as the last of the pass (loaders without length).
        drawn_before: Batches drawn in earlier epochs from an iterator that does not start again.
        rng_at_start: Generators of this process just before the loaders were opened; `None` before the first pass.
        rng_before_ahead: Generators of this process just before the batch ahead was fetched.
        generators_at_start: States of the `torch.Generator`s that belong to the loaders, at the same moment.
        live_workers_at_start: For each loader, whether it kept persistent workers from an earlier pass.
        states_at_start: `state_dict()` of the loaders that have it, at the same moment.
        restarts: For each loader that was started again inside the pass (by index): how often, and the generators of
            this process just before it was for the last time. Steps of the training draw random numbers in between.
    """

    epoch: int = 0
    batches: int = 0
    is_ahead: bool = False
    is_over: bool = False
    drawn_before: int = 0
    rng_at_start: dict[str, Any] | None = None
    rng_before_ahead: dict[str, Any] | None = None
    generators_at_start: list[torch.Tensor] = field(default_factory=list)
    live_workers_at_start: list[bool] = field(default_factory=list)
    states_at_start: list[Any] = field(default_factory=list)
    restarts: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    def start(self, epoch: int, loaders: list[Any], *, states: list[Any]) -> None:
        """Note that a new pass begins now.

        Args:
            epoch: Its epoch.
            loaders: The loaders, not opened yet.
            states: What their `state_dict()` gave.
        """
        self.drawn_before += self.batches + self.is_ahead
        self.epoch, self.batches = epoch, 0
        self.is_ahead, self.is_over, self.rng_before_ahead = False, False, None
        self.rng_at_start = collect_rng_states(include_cuda=False)
        self.generators_at_start = generator_states(loaders)
        self.live_workers_at_start = has_live_workers(loaders)
        self.states_at_start = states
        self.restarts = {}

    def at(self, batches: int) -> LoaderPosition:
        """Return the position in the same pass after this number of batches."""
        if batches == self.batches:
            return self
        return replace(self, batches=batches, is_ahead=False, is_over=False, rng_before_ahead=None, restarts={})

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain data."""
        return {name: getattr(self, name) for name in self.__slots__}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a position that `state_dict` gave."""
        for name in self.__slots__:
            setattr(self, name, state[name])


def is_stateful(loader: Any) -> bool:
    """Return whether a loader can tell and take its own position, as torchdata's `StatefulDataLoader` does."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


# ---- generators that belong to a loader


def _generators(loaders: list[Any]) -> Iterator[torch.Generator]:
    seen = set()
    for loader in loaders:
        sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
        for owner in (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator) and id(generator) not in seen:
                seen.add(id(generator))
                yield generator


def generator_states(loaders: list[Any]) -> list[torch.Tensor]:
    """Return the states of all `torch.Generator`s that the loaders and their samplers hold, each once."""
    return [generator.get_state() for generator in _generators(loaders)]


def set_generator_states(loaders: list[Any], states: list[torch.Tensor]) -> None:
    """Put back what `generator_states` gave for loaders made in the same way."""
    generators = list(_generators(loaders))
    if len(generators) != len(states):
        rank_zero_warn(
            f"The loaders hold {len(generators)} `torch.Generator`s, but the checkpoint has states of {len(states)},"
            " so their order of samples starts anew. Make the loaders as they were made in the run that is resumed."
        )
        return
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state.cpu())


# ---- workers that outlive a pass


def has_live_workers(loaders: list[Any]) -> list[bool]:
    """Return for each loader whether it keeps persistent workers that are running now."""
    return [
        isinstance(loader, DataLoader) and loader.persistent_workers and loader._iterator is not None
        for loader in loaders
    ]


def start_workers(loaders: list[Any], is_live: list[bool]) -> None:
    """Start the persistent workers of those loaders that had them before the pass that comes next.

    Opening a loader draws one number less from the generators of this process when its workers run already, so the
    order of the samples depends on it.
    """
    for loader, live in zip(loaders, is_live, strict=False):
        if live and getattr(loader, "persistent_workers", False) and loader._iterator is None:
            iter(loader)
            rank_zero_warn(
                f"`{type(loader).__name__}(persistent_workers=True)` is resumed after its first epoch: the order of the"
                " samples is the same as in the uninterrupted run, but random numbers drawn inside of the workers are"
                " not, because running workers cannot be put back to where they were. Use `persistent_workers=False`"
                " if the augmentation in the workers has to be exactly the same."
            )


# ---- generators of this process, cheaply


def raw_rng_states() -> tuple[Any, ...]:
    """Snapshot the generators of this process in whatever form is fastest; see `plain_rng_states`."""
    numpy = sys.modules.get("numpy")
    return torch.get_rng_state(), random.getstate(), None if numpy is None else numpy.random.get_state()


def plain_rng_states(raw: tuple[Any, ...]) -> dict[str, Any]:
    """Return a snapshot as plain data."""
    with isolate_rng(include_cuda=False):
        torch_state, python_state, numpy_state = raw
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)
        return collect_rng_states(include_cuda=False)
