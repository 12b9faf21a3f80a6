"""One pass over the sampler of a DataLoader: where it began, what it gave, and going on inside it without loading.

A sampler is begun again with the random numbers that it had, and what was consumed is drawn and dropped. Torch's own
samplers draw all they need when their first item is asked for. Of any other sampler a checksum of what it gave is kept,
so that one that gives something else the second time is noticed.
"""

from __future__ import annotations

import marshal
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fulmen.data.rng import (
    find_generators,
    generator_state,
    plain_rng_states,
    raw_rng_states,
    set_generator_state,
    set_raw_rng_states,
)
from fulmen.data.shard import Shard, order_of
from fulmen.utilities.data import sized_len
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import set_rng_states

__all__ = ["SamplerMemory", "SamplerPass"]

_KNOWN = (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    range,
    list,
    tuple,
)
_PLAIN = (int, float, bool, str, type(None))
_OWN_MODULE = "fulmen.data.sampler"
_INSIDE = ("sampler", "batch_sampler")  # the names that batch samplers use


class SamplerMemory:
    """What the samplers of a loader hold from pass to pass: generators, counters, and states of their own.

    Args:
        loader: The loader, as it was before its first pass.

    Attributes:
        is_known: All samplers are of kinds that are known to draw at the start only.
        unknown_name: Class of a sampler that is not.
        part: Which part of the order they give, and of how many.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._samplers = _samplers_of(loader)
        others = [each for each in self._samplers if not _is_known(each)]
        self.is_known = not others
        self.unknown_name = type(others[0]).__qualname__ if others else ""
        self._stateful = [each for each in others if _is_stateful(each)]
        self._counting = [each for each in others if not _is_stateful(each)]
        self._at_first = [_plain_attributes(each) for each in self._counting]
        self._order = order_of(loader)
        shards = [shard for each in self._samplers if isinstance(shard := getattr(each, "shard", None), Shard)]
        self.part = [shards[0].rank, shards[0].num_replicas] if shards else [0, 1]

    @property
    def has_states(self) -> bool:
        """Whether a sampler can tell its own position."""
        return bool(self._stateful)

    def end_pass(self, state: dict[str, Any]) -> None:
        """Let samplers with states of their own begin a new pass next, as they do after a pass.

        Many go on from the position in a state that was loaded, even if it is the end. Others tell only in which epoch
        they are: those give a whole pass, and get their state once more.

        Args:
            state: What was restored.
        """
        before = raw_rng_states()
        for sampler, own in zip(self._stateful, state.get("samplers", ()), strict=False):
            length = sized_len(sampler)
            is_short = length is not None and sum(1 for _ in islice(sampler, length)) < length
            sampler.load_state_dict(own)
            if is_short:
                next(iter(sampler), None)
        set_raw_rng_states(before)
        for generator, each in zip(self.generators(), state["generators"], strict=False):
            set_generator_state(generator, each)

    def generators(self) -> list[Any]:
        """Return the generators of the loader and its samplers, which may have changed."""
        without = (getattr(self._loader, "dataset", None),)
        return find_generators([getattr(self._loader, "generator", None), *self._samplers], without=without)

    def state(self) -> dict[str, Any]:
        """Return all that they hold now, as plain data."""
        state: dict[str, Any] = {"generators": [generator_state(each) for each in self.generators()]}
        if self._stateful:
            state["samplers"] = [each.state_dict() for each in self._stateful]
        if self._counting:
            state["attributes"] = [_plain_attributes(each) for each in self._counting]
        if self._order is not None and self._order.stream is not None:
            state["stream"] = plain_rng_states(self._order.stream)
        return state

    def changed(self, *states: dict[str, Any]) -> None:
        """Leave only those attributes in states that differ from those at first in one of the states.

        What a sampler was made with, its batch size for instance, stays as it is made the next time.
        """
        for i, first in enumerate(self._at_first):
            every = [state["attributes"][i] for state in states if "attributes" in state]
            names = {name for each in every for name, value in each.items() if first.get(name, _PLAIN) != value}
            for state in states:
                if "attributes" in state:
                    state["attributes"][i] = {k: v for k, v in state["attributes"][i].items() if k in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned, for a loader made in the same way."""
        generators, states = self.generators(), state["generators"]
        if len(generators) != len(states):
            rank_zero_warn(
                f"The loader and its samplers hold {len(generators)} random generators, but the checkpoint has states"
                f" of {len(states)}, so their order of samples starts anew. Make the loaders as they were made in the"
                " run that is resumed."
            )
        else:
            for generator, each in zip(generators, states, strict=True):
                set_generator_state(generator, each)
        for sampler, each in zip(self._stateful, state.get("samplers", ()), strict=False):
            sampler.load_state_dict(each)
        for sampler, each in zip(self._counting, state.get("attributes", ()), strict=False):
            vars(sampler).update({name: value for name, value in each.items() if name in vars(sampler)})
        if self._order is not None and "stream" in state:
            before = raw_rng_states()
            set_rng_states(state["stream"])
            self._order.stream = raw_rng_states()
            set_raw_rng_states(before)


class SamplerPass:
    """Stands in for the sampler of a loader while the loader opens it.

    Args:
        source: The sampler or batch sampler.
        memory: What the samplers of the loader hold.
        logs: Keep a checksum of what is drawn, and what was drawn but not consumed.

    Attributes:
        is_open: The loader has begun to iterate.
        num_dropped: Number of items that were drawn and dropped to go on inside the pass.
    """

    def __init__(self, source: Any, memory: SamplerMemory, *, logs: bool) -> None:
        # settings
        self.source = source
        self._memory = memory
        self._logs = logs
        # state of a pass
        self.is_open = False
        self.num_dropped = 0
        self.after_first_draw: Callable[[], object] | None = None
        self._log: _Log | None = None
        self._at_iter: list[dict[str, Any]] = []  # workers make the loader ask twice, with a seed drawn in between
        self._at_draw: dict[str, Any] | None = None
        self._outer: tuple[Any, dict[str, Any]] | None = None
        self._num_opened = 0
        self._as_if_alive = False
        # state between loading a position and reaching it
        self._to_reach: dict[str, Any] | None = None
        self._pending: list[Any] = []
        self._items: Iterator[Any] = iter(())
        self._not_begun: Iterator[Any] | None = None

    def begin(self, to_reach: dict[str, Any] | None, *, window: int, as_if_alive: bool = False) -> None:
        """Get ready for a pass.

        Args:
            to_reach: What `state_dict` returned, to go on from there; `None` for a new pass.
            window: How many items at most are drawn but not consumed.
            as_if_alive: The loader starts workers that would have been there already in the run that is resumed. It
                asks twice for an iterator then, and draws a seed in between, which must have no effect.
        """
        if self._not_begun is not None:  # the sampler would begin where it was told to in the new pass
            next(self._not_begun, None)
        self._not_begun = None
        self.is_open, self.num_dropped, self.after_first_draw = False, 0, None
        self._log = _Log(window, self._memory.unknown_name) if self._logs else None
        self._to_reach, self._pending, self._items = to_reach, [], iter(())
        self._at_iter, self._at_draw, self._outer = [], None, None
        self._num_opened, self._as_if_alive = 0, as_if_alive

    def __len__(self) -> int:
        """The number of items of a whole pass."""
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        """Answer for the sampler."""
        if name == "source":  # not there yet while a copy is being unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    def __iter__(self) -> Iterator[Any]:
        """Give the items that come next."""
        self.is_open = True
        self._num_opened += 1
        if self._num_opened == 1 and (self._as_if_alive or self._to_reach is not None):
            self._outer = raw_rng_states(), self._memory.state()
        elif self._as_if_alive and self._num_opened == 2 and self._outer is not None:
            self._set(*self._outer)
        known = None if self._to_reach is None else self._to_reach.get("at_iter")
        if known:
            if self._num_opened == 1:
                self._at_iter = list(known)
            at_iter = known[min(self._num_opened, len(known)) - 1]
            self._set(at_iter["rng"], at_iter["held"])
        else:
            self._at_iter.append(self._now())
        self._items = iter(self.source)
        if self._log is not None:
            self._items = self._log.noting(self._items)
        return chain.from_iterable(self._parts())  # in C: no Python call per item

    def _parts(self) -> Iterator[Iterable[Any]]:
        self.seek()
        yield self._pending
        self._not_begun = None
        yield self._items

    def seek(self) -> None:
        """Draw and drop what was consumed, if anything was, once; generators of this process stay where they are."""
        if self._at_draw is not None:
            return
        to_reach = self._to_reach
        if to_reach is None:
            self._at_draw = self._now()
        else:
            self._to_reach = None
            self._at_draw = to_reach.get("at_draw") or self._now()
            self._set(self._at_draw["rng"], self._at_draw["held"])
            self._drop(to_reach)
            if not to_reach["consumed"] and to_reach.get("at_draw"):  # draw now, with the random numbers of then
                self._items = chain(list(islice(self._items, 1)), self._items)
            if self._outer is not None and to_reach["consumed"] > 0:  # else the first batch is fetched after this draw
                set_raw_rng_states(self._outer[0])
        if self.after_first_draw is not None:
            self.after_first_draw()
            self.after_first_draw = None

    def _drop(self, to_reach: dict[str, Any]) -> None:
        consumed, pending_ids = to_reach["consumed"], to_reach.get("pending_ids")
        if pending_ids is not None:  # batches came in any order: some of those drawn were not consumed
            wanted = set(pending_ids)
            drawn = islice(self._items, to_reach["drawn"])
            self._pending = [item for i, item in enumerate(drawn) if i in wanted]
            self.num_dropped = consumed
            return
        self.num_dropped = sum(1 for _ in islice(self._items, consumed))
        log = self._log
        if log is None or "checksum" not in to_reach or to_reach["part"] != self._memory.part:
            return
        found, expected = log.checksum(consumed), to_reach["checksum"]
        is_same = self.num_dropped == consumed and expected is not None and found == expected
        if is_same and self._gives_again(to_reach["pending"] or []):
            return
        self._go_on_without_repetition(to_reach, comparable=expected is not None)

    def _gives_again(self, pending: list[Any]) -> bool:
        """Whether the sampler gives what it had drawn ahead; if it has no state, it is replaced where it differs."""
        log = self._log
        if log is None or not self._memory.has_states:
            if log is not None:
                log.replacements.extend(pending)
            return True
        self._pending = list(islice(self._items, len(pending)))
        return [_folded(0, each) for each in self._pending] == [_folded(0, each) for each in pending]

    def _go_on_without_repetition(self, to_reach: dict[str, Any], *, comparable: bool) -> None:
        """The sampler gave something else than before: what it had drawn ahead is given again, then it goes on."""
        pending, log = to_reach.get("pending"), self._log
        if log is None:
            return
        if self._memory.has_states:
            self._memory.restore(to_reach["held"])
            self._pending = list(pending or ())
            log.reset(to_reach["consumed"], to_reach["checksum"])
            for item in self._pending:
                log.add(item)
            self._items = self._not_begun = log.noting(iter(self.source))
        elif pending is None or not comparable:
            _warn_unknown_items(self._memory.unknown_name)
            return
        else:
            log.warn_once()
            log.reset(to_reach["consumed"], to_reach["checksum"])
            log.replacements.extend(pending)
        self.num_dropped = to_reach["consumed"]

    # ---- snapshots

    def _now(self) -> dict[str, Any]:
        return {"rng": raw_rng_states(), "held": self._memory.state()}

    def _set(self, rng: Any, held: dict[str, Any]) -> None:
        if isinstance(rng, dict):
            set_rng_states(rng)
        else:
            set_raw_rng_states(rng)
        self._memory.restore(held)

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """Return where the pass stands, as plain data.

        Args:
            consumed: Number of items that count as consumed.
        """
        at_iter, at_draw = [_plain(each) for each in self._at_iter], _plain(self._at_draw)
        held = self._memory.state()
        self._memory.changed(*(each["held"] for each in (*at_iter, at_draw) if each is not None), held)
        state: dict[str, Any] = {"consumed": consumed, "at_iter": at_iter, "at_draw": at_draw, "held": held}
        if self._log is not None:
            state |= {
                "drawn": self._log.number,
                "part": self._memory.part,
                "checksum": self._log.checksum(consumed),
                "pending": self._log.pending(consumed),
            }
        return state

    @property
    def num_drawn(self) -> int | None:
        """Number of items drawn in this pass, if that is counted."""
        return None if self._log is None else self._log.number


class _Log:
    """A checksum of the items that were drawn, and those last drawn."""

    def __init__(self, window: int, name: str) -> None:
        self._window = window
        self._name = name
        self._has_warned = False
        self.replacements: deque[Any] = deque()  # what was drawn before the interruption, to be given once more
        self.reset(0, 0)

    def reset(self, number: int, checksum: int | None) -> None:
        self.number = number
        self._recent: deque[Any] = deque()
        self._checksum = checksum  # of all items that are not among the recent; None if one could not be read

    def add(self, item: Any) -> None:
        self.number += 1
        self._recent.append(item)
        if len(self._recent) > self._window:
            self._checksum = _folded(self._checksum, self._recent.popleft())

    def noting(self, items: Iterator[Any]) -> Iterator[Any]:
        for drawn in items:
            item = drawn
            if self.replacements:
                item = self.replacements.popleft()
                if _folded(0, item) != _folded(0, drawn):
                    self.warn_once()
            self.add(item)
            yield item

    def warn_once(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _warn_lazy(self._name)

    def checksum(self, consumed: int) -> int | None:
        """The checksum of so many items; `None` if it is not known."""
        folded = self.number - len(self._recent)
        if consumed < folded:
            return None
        checksum = self._checksum
        for item in islice(self._recent, consumed - folded):
            checksum = _folded(checksum, item)
        return checksum

    def pending(self, consumed: int) -> list[Any] | None:
        """The items after the consumed ones as plain data; `None` if they are not known or something else."""
        skipped = consumed - (self.number - len(self._recent))
        if skipped < 0:
            return None
        items = [_as_plain(item) for item in islice(self._recent, skipped, None)]
        return None if any(item is _NOT_PLAIN for item in items) else items


_NOT_PLAIN = object()


def _as_plain(item: Any) -> Any:
    if isinstance(item, (*_PLAIN, torch.Tensor)):
        return item if type(item) in (*_PLAIN, torch.Tensor) else _NOT_PLAIN
    if isinstance(item, (list, tuple)) and type(item) in (list, tuple):
        parts = [_as_plain(each) for each in item]
        return _NOT_PLAIN if any(each is _NOT_PLAIN for each in parts) else type(item)(parts)
    return item.item() if type(item).__module__ == "numpy" and getattr(item, "ndim", 1) == 0 else _NOT_PLAIN


def _folded(checksum: int | None, item: Any) -> int | None:
    if checksum is None:
        return None
    try:
        return zlib.crc32(marshal.dumps(item, 0), checksum)  # version 0: equal items give equal bytes
    except ValueError:
        pass
    plain = item.tolist() if isinstance(item, torch.Tensor) else _as_plain(item)
    try:
        return None if plain is _NOT_PLAIN else zlib.crc32(repr(plain).encode(), checksum)
    except ValueError:
        return None


def _plain(snapshot: dict[str, Any] | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    rng, held = snapshot["rng"], dict(snapshot["held"])
    if "attributes" in held:
        held["attributes"] = [dict(each) for each in held["attributes"]]
    return {"rng": rng if isinstance(rng, dict) else plain_rng_states(rng), "held": held}


# ---- samplers


def _samplers_of(loader: Any) -> list[Any]:
    """The sampler and batch sampler of a loader and those inside of them, each once."""
    found: list[Any] = []
    level = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    while level:
        each = level.pop(0)
        if each is None or any(each is other for other in found):
            continue
        found.append(each)
        level += [
            value
            for name, value in getattr(each, "__dict__", {}).items()
            if name in _INSIDE or isinstance(value, torch.utils.data.Sampler) or _is_stateful_sampler(value)
        ]
    return found


def _is_stateful_sampler(value: Any) -> bool:
    return _is_stateful(value) and hasattr(type(value), "__iter__") and not isinstance(value, torch.utils.data.Dataset)


def _is_known(sampler: Any) -> bool:
    if type(sampler).__module__ == _OWN_MODULE:
        return True
    return type(sampler) in _KNOWN


def _is_stateful(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _plain_attributes(sampler: Any) -> dict[str, Any]:
    return {name: value for name, value in getattr(sampler, "__dict__", {}).items() if type(value) in _PLAIN}


def _warn_lazy(name: str) -> None:
    rank_zero_warn(
        f"The sampler {name!r} gave other samples when its epoch was begun again with the same random numbers, because"
        " what it gives depends on more than the random state at the start of the epoch, e.g. on random numbers that"
        " the training draws in between. It goes on with the random numbers that it would have had; if it remembers"
        " what it gave before, samples of this epoch may come twice or not at all. Draw the whole order at the start of"
        " `__iter__`, give it a generator of its own, or give it `state_dict` and `load_state_dict`."
    )


def _warn_unknown_items(name: str) -> None:
    rank_zero_warn(
        f"What the sampler {name!r} gives cannot be compared with what it gave before the interruption, so it is not"
        " known whether the samples of this epoch go on where they were. Give indices as integers, strings, lists or"
        " tuples, or give the sampler `state_dict` and `load_state_dict`."
    )
