"""The part of the data that a process reads, and the one order of samples that all processes share.

The order is what a single process would draw. At the moment where it would draw, the random state of rank 0 is sent to
all, each rank draws from it by the user's own sampler, and goes on with its own random numbers afterwards.
"""

from __future__ import annotations

import pickle
import random
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from fulmen.data.rng import raw_rng_states

__all__ = ["Ranks", "Shard", "SharedOrder", "agree_on_order", "order_of"]

_Item = TypeVar("_Item")

# These draw from the generators of the process for their first item only.
_DRAW_ONCE = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Ranks(Protocol):
    """What loading of data needs to know and ask of the other processes; a strategy has it."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def global_rank(self) -> int:
        """Number of this process."""

    @property
    def distributed_sampler_kwargs(self) -> Mapping[str, Any]:
        """Among how many the data are divided (`num_replicas`), and which part is ours (`rank`)."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return what rank `src` passed."""

    def gather_objects(self, obj: Any) -> list[Any]:
        """Return what every rank passed."""

    def agree(self, values: list[int], op: Literal["max", "min", "sum"] = "max") -> list[int]:
        """Return the largest, the smallest or the sum over ranks of each value."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of the data a process reads.

    Attributes:
        rank: Number of the part, from 0.
        num_replicas: Number of parts.
    """

    rank: int
    num_replicas: int

    @classmethod
    def of(cls, ranks: Ranks) -> Shard:
        """Return the part of this process."""
        kwargs = ranks.distributed_sampler_kwargs
        return cls(rank=kwargs["rank"], num_replicas=kwargs["num_replicas"])

    def global_idx(self, local_idx: int) -> int:
        """Return the number that a single process would give to an item that this part has under `local_idx`."""
        return local_idx * self.num_replicas + self.rank

    def share_of(self, number: int) -> int:
        """Return how many of so many items are in this part, if it gets every `num_replicas`-th one."""
        return max(0, -((self.rank - number) // self.num_replicas))


class SharedOrder(Generic[_Item]):
    """The items of a sampler or batch sampler in an order that is the same on all ranks.

    Without `agree_on_next_pass` a pass needs nobody else: it gives what the sampler gives on this rank.

    Args:
        source: The sampler or batch sampler of the user.

    Attributes:
        source: The sampler or batch sampler.
        stream: The random state that the last pass drew from, after it drew; passes without talk go on from there.

    Raises:
        TypeError: It has no length.
    """

    def __init__(self, source: Iterable[_Item]) -> None:
        if not hasattr(source, "__len__"):
            raise TypeError(
                f"The sampler {type(source).__qualname__!r} has no length, so its samples cannot be divided among"
                " several processes. Give it a finite `__len__`, or divide them yourself and set"
                " `use_distributed_sampler=False`."
            )
        self.source = source
        self._is_in_order = _is_exactly(source, SequentialSampler)
        self._draws_once = _is_exactly(source, *_DRAW_ONCE)
        self._ranks: Ranks | None = None
        self._ranks_of_every_pass: Ranks | None = None
        self._may_talk = True
        self.stream: tuple[Any, ...] | None = None
        self._ready: Iterator[_Item] | None = None
        self._num_passed_over = 0

    def __len__(self) -> int:
        """The number of items that a pass gives."""
        return max(0, len(self.source) - self._num_passed_over)  # type: ignore[arg-type]  # checked above

    def start_at(self, number: int) -> None:
        """Let the passes from now on leave out this many items at their start; 0 makes them whole again.

        Args:
            number: Items that all ranks together have seen already.
        """
        self._num_passed_over, self._ready = number, None

    def __getstate__(self) -> dict[str, Any]:
        """What copies and workers get: no processes and nothing that runs."""
        return {**vars(self), "_ranks": None, "_ranks_of_every_pass": None, "_ready": None}

    def agree_on_next_pass(self, ranks: Ranks | None, *, may_talk: bool = True) -> None:
        """Let the next pass have the same order on all ranks; they must all begin it, or call `join`.

        Args:
            ranks: The processes; `None` withdraws the wish.
            may_talk: Ask rank 0. Otherwise the random numbers go on from where the last such pass left them, for
                passes that not all ranks begin at the same time.
        """
        self._ranks, self._may_talk, self._ready = ranks, may_talk, None

    def agree_on_every_pass(self, ranks: Ranks) -> None:
        """Let every pass have the same order on all ranks; they must all make the same passes.

        Args:
            ranks: The processes.
        """
        self._ranks_of_every_pass = ranks

    def draw(self) -> None:
        """Agree on the order now; the next pass has it."""
        items = iter(self)
        first = list(islice(items, 1))
        self._ready = chain(first, items)

    def join(self) -> None:
        """Take part in the agreement about a pass of which this rank reads nothing."""
        next(iter(self), None)

    def __iter__(self) -> Iterator[_Item]:
        """Give the items; the agreement happens when the first is asked for."""
        ready, self._ready = self._ready, None
        if ready is not None:
            yield from ready
        else:
            yield from islice(self._whole_pass(), self._num_passed_over, None)

    def _whole_pass(self) -> Iterator[_Item]:
        ranks, self._ranks = self._ranks or self._ranks_of_every_pass, None
        if ranks is None or self._is_in_order:
            yield from self.source
            return
        with _drawing_from(self._agreed_states(ranks)):
            items = iter(self.source)
            drawn = list(islice(items, 1 if self._draws_once else len(self.source)))  # type: ignore[arg-type]  # as above
            self.stream = raw_rng_states()
        if self._may_talk and not self._draws_once:
            drawn = _same_on_all(drawn, ranks)
        yield from drawn
        yield from items

    def _agreed_states(self, ranks: Ranks) -> tuple[Any, ...]:
        if not self._may_talk:
            return self.stream or raw_rng_states()
        generators = list(_own_generators(self.source))
        own = (raw_rng_states(), [each.get_state() for each in generators]) if ranks.global_rank == 0 else None
        process_states, states = ranks.broadcast(own)
        for generator, state in zip(generators, states, strict=False):
            generator.set_state(state)
        return process_states  # type: ignore[no-any-return]  # what rank 0 passed


def order_of(loader: Any) -> SharedOrder[Any] | None:
    """Return the order that a loader shares with those of other ranks; `None` if it has its own.

    Args:
        loader: Any loader.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    inside = getattr(batch_sampler, "sampler", None)
    for owner in (getattr(loader, "sampler", None), inside, batch_sampler):
        order = getattr(owner, "order", None)
        if isinstance(order, SharedOrder):
            return order
    return None


def agree_on_order(loader: Any, ranks: Ranks | None, *, may_talk: bool = True) -> None:
    """Call this on all ranks just before `iter(loader)`: the pass will have the same order of samples on all of them.

    Args:
        loader: Any loader; nothing happens with one that was not divided among ranks.
        ranks: The processes; `None` withdraws the wish.
        may_talk: See `SharedOrder.agree_on_next_pass`.
    """
    order = order_of(loader)
    if order is not None:
        order.agree_on_next_pass(ranks, may_talk=may_talk)


def _is_exactly(sampler: Any, *kinds: type) -> bool:
    """Whether it is of one of these classes; subclasses may do anything."""
    return type(sampler) in kinds


def _same_on_all(drawn: list[Any], ranks: Ranks) -> list[Any]:
    """Replace what was drawn by what rank 0 drew, if they differ: the sampler has a generator that we do not see."""
    checksum = zlib.crc32(pickle.dumps(drawn))
    number = len(drawn)
    most, least, highest, lowest = ranks.agree([number, -number, checksum, -checksum], "max")
    if most != -least or highest == -lowest:  # not even the same data, or all the same
        return drawn
    return ranks.broadcast(drawn if ranks.global_rank == 0 else None)  # type: ignore[no-any-return]  # a list there, too


def _own_generators(source: Any) -> Iterator[torch.Generator]:
    """Each generator that belongs to a sampler, or to the one inside of a batch sampler."""
    outer, inner = getattr(source, "generator", None), getattr(getattr(source, "sampler", None), "generator", None)
    for generator in (outer,) if inner is outer else (outer, inner):
        if isinstance(generator, torch.Generator):
            yield generator


@contextmanager
def _drawing_from(states: tuple[Any, ...]) -> Iterator[None]:
    """Draw from these states inside the block. Generators that were in them before stay where the block leaves them."""
    mine = raw_rng_states()
    torch_in_step = torch.equal(mine[0], states[0])
    python_in_step = mine[1] == states[1]
    numpy_in_step = mine[2] is None or states[2] is None or _is_same_numpy_state(mine[2], states[2])
    if not torch_in_step:
        torch.set_rng_state(states[0])
    if not python_in_step:
        random.setstate(states[1])
    if not numpy_in_step:
        sys.modules["numpy"].random.set_state(states[2])
    try:
        yield
    finally:
        if not torch_in_step:
            torch.set_rng_state(mine[0])
        if not python_in_step:
            random.setstate(mine[1])
        if not numpy_in_step:
            sys.modules["numpy"].random.set_state(mine[2])


def _is_same_numpy_state(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return bool((a[1] == b[1]).all()) and (a[0], *a[2:]) == (b[0], *b[2:])
