"""The iterators that the loops run on: limits, knowing the last batch, and going on inside an epoch."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import count, islice
from math import inf
from operator import itemgetter
from typing import Any

from fulmen.data.combined_loader import CombinedLoader, length_of
from fulmen.data.position import (
    LoaderPosition,
    generator_states,
    has_live_workers,
    is_stateful,
    plain_rng_states,
    raw_rng_states,
    set_generator_states,
    start_workers,
)
from fulmen.data.sampler import LastBatch, set_sampler_epoch
from fulmen.data.shard import Ranks, Shard, agree_on_order, order_of
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import isolate_rng, set_rng_states

__all__ = ["EvalBatches", "TrainBatches", "WrapNext"]

WrapNext = Callable[[Callable[[], Any]], Callable[[], Any]]
"""Takes the function that fetches the next batch and returns one to use instead, e.g. one that measures time."""

_END = object()
_NOT_FETCHED = object()

_Opened = tuple[Iterator[Any], int, Any]  # the batches to come, the index of the first of them, one fetched before


class TrainBatches:
    """One training epoch after the other: yields `(batch, batch_idx, is_last)`.

    Loaders with a length are never asked for a batch past the limit. Loaders without are read one batch ahead, so that
    `is_last` is known. Breaking out of the iteration is fine.

    Args:
        loader: The loaders, combined in any mode but `"sequential"`.
        limit: The most batches of an epoch: a number of batches, not a fraction.
        wrap_next: Wraps the function that fetches the next batch.
        ranks: The processes that train together: they open each epoch with the same order of samples, and end it
            together. Every one of them has to do the same with its object.

    Attributes:
        loader: The combined loader.
        num_batches: The most batches of an epoch, `inf` if it is not known.
        is_sized: Every loader has a length, so nothing is read ahead.
        ended_early: The last epoch ended before the length that its loader had announced: no batch was `is_last`.

    Example::

        batches = TrainBatches(CombinedLoader([1, 2, 3]), limit=2)
        batches.set_epoch(0)
        list(batches)  # [(1, 0, False), (2, 1, True)]
    """

    def __init__(
        self,
        loader: CombinedLoader,
        *,
        limit: int | float = inf,
        wrap_next: WrapNext | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        # settings
        self.loader = loader
        self.num_batches: int | float = min(limit, loader.total_batches())
        self.is_sized = all(length_of(each) < inf for each in loader.flattened)
        self._wrap_next = wrap_next
        self._ranks = _several(ranks)
        self._is_fetched_by_workers = all(getattr(each, "num_workers", 0) > 0 for each in loader.flattened)
        self._stateful = [each for each in loader.flattened if is_stateful(each)]
        # With a loader that starts again or ends before the others, states alone do not tell where the whole stands.
        self._is_resumed_by_states = len(self._stateful) == len(loader.flattened) and (
            loader.is_single or loader.mode == "min_size"
        )
        # state
        self.ended_early = False
        self._has_warned_uneven = False
        self._epoch = 0
        self._position = LoaderPosition()
        self._raw_rng_before_ahead: tuple[Any, ...] | None = None
        self._raw_restarts: dict[int, tuple[int, tuple[Any, ...]]] = {}
        self._num_restarts: dict[int, int] = {}
        self._states_before_ahead: list[Any] | None = None
        self._running: weakref.ref[Generator[tuple[Any, int, bool], None, None]] | None = None
        # state between loading a position and reaching it
        self._is_restored = False
        self._are_states_restored = False
        self._live_workers: list[bool] = []
        self._restarts_to_repeat: dict[int, tuple[int, dict[str, Any]]] | None = None  # None: not replaying
        self._opened: _Opened | None = None

    # ---- the last batch on several ranks

    @property
    def last_weight(self) -> float:
        """What the loss of this rank's last batch is to be multiplied with.

        The mean over ranks is the mean over all samples of the last batches then: 1.0 if all ranks have equally many,
        0.0 if this rank repeats a sample because there was none left for it. With several loaders it is known only if
        they end together and agree about it, and 1.0 otherwise.
        """
        weights = {1.0 if last is None else last.last_weight for last in self._last_batches()}
        return weights.pop() if len(weights) == 1 else 1.0

    @property
    def last_size(self) -> int | None:
        """The number of samples in this rank's last batch if it is not full: 0 if it is a repetition. Else `None`."""
        sizes = {None if last is None else last.last_size for last in self._last_batches()}
        return sizes.pop() if len(sizes) == 1 else None

    def _last_batches(self) -> list[LastBatch | None]:
        """For each loader, what its sampler knows about the last batch of the epoch."""
        return [
            _sampler_that_knows(each) if length_of(each) == self.num_batches else None for each in self.loader.flattened
        ]

    # ---- epochs

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers which epoch comes next. A loaded position counts only for the epoch that it belongs to.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self._epoch = epoch
        for loader in self.loader.flattened:
            set_sampler_epoch(loader, epoch)

    def set_start(self, batch_idx: int) -> None:
        """Begin the next pass with this batch; those before it are fetched and dropped.

        Args:
            batch_idx: Index of the first batch to yield.
        """
        self._position = replace(self._position.at(batch_idx), epoch=self._epoch)
        self._is_restored = True
        self._opened = None

    def __iter__(self) -> Generator[tuple[Any, int, bool], None, None]:
        """Open the loaders, go to the loaded position if there is one, and return a generator."""
        self.replay()
        source, first, ahead = self._opened or self._open_new_epoch()
        self._opened = None
        self.ended_early = False
        if self._wrap_next is not None:
            source = _calls_until_stop(self._wrap_next(source.__next__))
        running = self._sized(source, first) if self.is_sized else self._one_ahead(source, first, ahead)
        self._running = weakref.ref(running)  # weak: the workers shall end as soon as the loop lets go of the generator
        return running

    def _sized(self, source: Iterator[Any], first: int) -> Generator[tuple[Any, int, bool], None, None]:
        position = self._position
        last = int(self.num_batches) - 1
        batch_idx = first - 1
        # The range comes first: when it ends, `zip` does not fetch another batch.
        for batch_idx, batch in zip(range(first, last + 1), source):  # noqa: B905
            position.batches = batch_idx + 1
            yield batch, batch_idx, batch_idx == last
        self.ended_early = batch_idx < last

    def _one_ahead(
        self, source: Iterator[Any], batch_idx: int, batch: Any
    ) -> Generator[tuple[Any, int, bool], None, None]:
        last = self.num_batches - 1
        if batch_idx > last:
            return
        position = self._position
        together = self._ranks is not None
        if batch is _NOT_FETCHED:
            batch = next(source, _END)
            if together:
                batch = self._agreed(batch, batch_idx)
        while batch is not _END:
            following = self._fetch_ahead(source) if batch_idx < last else _END
            if together and batch_idx < last:
                following = self._agreed(following, batch_idx + 1)
            position.batches = batch_idx + 1
            position.is_over = following is _END
            position.is_ahead = not position.is_over
            yield batch, batch_idx, position.is_over
            batch = following
            batch_idx += 1

    def _fetch_ahead(self, source: Iterator[Any]) -> Any:
        """Fetch a batch and keep what is needed to fetch it again: a checkpoint may be written before it is used."""
        rng = None if self._is_fetched_by_workers else raw_rng_states()
        states = [each.state_dict() for each in self._stateful] if self._is_resumed_by_states else None
        batch = next(source, _END)
        self._raw_rng_before_ahead, self._states_before_ahead = rng, states
        return batch

    def _agreed(self, batch: Any, batch_idx: int) -> Any:
        """The batch if all ranks have one, so that they end together."""
        ranks, has_one = self._ranks, batch is not _END
        if ranks is None or ranks.agree([int(has_one)], "min")[0]:
            return batch
        self._position.drawn_before += has_one  # it is lost
        if not self._has_warned_uneven:
            have = ranks.gather_objects(has_one)
            if any(have):
                self._has_warned_uneven = True
                _warn_uneven_end(have, batch_idx)
        return _END

    def _open_new_epoch(self) -> _Opened:
        self._raw_rng_before_ahead, self._states_before_ahead = None, None
        self._num_restarts, self._raw_restarts = {}, {}
        states = [] if self._is_resumed_by_states else [each.state_dict() for each in self._stateful]
        self._position.start(self._epoch, self.loader.flattened, states=states)
        return self._source(), 0, _NOT_FETCHED

    def _source(self) -> Iterator[Any]:
        loader = self.loader
        if self._ranks is not None:
            for each in loader.flattened:
                agree_on_order(each, self._ranks)
        if loader.is_single:
            return iter(loader.flattened[0])
        limits = loader.limits or [inf] * len(loader.flattened)
        return map(itemgetter(0), loader.opened(limits, before_restart=self._before_restart))

    def _before_restart(self, index: int) -> None:
        """Keep the generators of this process: a shuffled loader takes its new order from them."""
        if self._ranks is not None:  # without lengths, ranks may come here after different numbers of batches
            agree_on_order(self.loader.flattened[index], self._ranks, may_talk=self.is_sized)
        number = self._num_restarts.get(index, 0) + 1
        self._num_restarts[index] = number
        if self._restarts_to_repeat is None:
            self._raw_restarts[index] = number, raw_rng_states()
            return
        last_number, rng = self._restarts_to_repeat.get(index, (0, {}))
        if number == last_number:
            set_rng_states(rng)

    def close(self) -> None:
        """End the iteration and shut down the workers of all loaders."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        self._opened = None
        for each in self.loader.flattened:
            agree_on_order(each, None)
        self.loader.reset()

    # ---- going on inside an epoch

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Return where the loaders stand, as plain data.

        Args:
            batches: Number of batches of this epoch that count as consumed, default those that were handed out.
        """
        position = self._position
        if position.is_ahead and self._raw_rng_before_ahead is not None:
            position = replace(position, rng_before_ahead=plain_rng_states(self._raw_rng_before_ahead))
        restarts = {i: (number, plain_rng_states(raw)) for i, (number, raw) in self._raw_restarts.items()}
        position = replace(position, restarts=position.restarts | restarts)
        if batches is not None:
            position = position.at(batches)
        loaders = self.loader.flattened
        return {
            "position": position.state_dict(),
            "generators": generator_states(loaders),
            "live_workers": has_live_workers(loaders),
            # For a run on another number of ranks: `batches` of the position are those of one rank.
            "num_replicas": self._num_replicas(),
            "batch_size": [_global_batch_size(each) for each in loaders],
        }

    def _num_replicas(self) -> int:
        return 1 if self._ranks is None else Shard.of(self._ranks).num_replicas

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the next pass goes on from there if it is of the same epoch.

        Args:
            state: The position, from a run with loaders made in the same way.
        """
        self._position = LoaderPosition(**state["position"])
        self._live_workers = state["live_workers"]
        set_generator_states(self.loader.flattened, state["generators"])
        self._raw_rng_before_ahead, self._raw_restarts = None, {}
        self._is_restored = True
        self._opened = None

    def loader_states(self) -> list[Any]:
        """Return `state_dict()` of each loader that has it, without the batch that was read ahead."""
        if self._position.is_ahead and self._states_before_ahead is not None:
            return self._states_before_ahead
        return [each.state_dict() for each in self._stateful]

    def load_loader_states(self, states: list[Any]) -> None:
        """Give each loader that has `load_state_dict` its state back.

        Args:
            states: What `loader_states` returned.

        Raises:
            RuntimeError: The number of states is not the number of such loaders.
        """
        if len(states) != len(self._stateful):
            raise RuntimeError(
                f"The checkpoint has the states of {len(states)} stateful train dataloaders, but there are"
                f" {len(self._stateful)} now, so it is open which state belongs to which. Pass the same dataloaders as"
                " in the run that wrote the checkpoint."
            )
        for loader, state in zip(self._stateful, states, strict=True):
            loader.load_state_dict(state)
        self._states_before_ahead = states
        self._are_states_restored = bool(states)

    def replay(self) -> int:
        """Go to the position that was loaded or set, if there is one. `iter()` does it too.

        Afterwards the random number generators of this process are as they were before.

        Returns:
            The number of batches that were fetched and dropped.
        """
        if not self._is_restored:
            return 0
        self._is_restored = False
        position, loaders = self._position, self.loader.flattened
        goes_on = position.epoch == self._epoch and position.batches > 0
        stream_behind = (
            position.drawn_before if goes_on else position.drawn_before + position.batches + position.is_ahead
        )
        is_known = goes_on and position.rng_at_start is not None
        generators = generator_states(loaders)
        dropped = 0
        with isolate_rng(include_cuda=False):
            start_workers(loaders, position.live_workers_at_start if is_known else self._live_workers)
            if self.loader.is_single and _is_stream(loaders[0]):
                _drop(loaders[0], stream_behind)
            if goes_on:
                dropped = self._reopen(is_known=is_known)
            set_generator_states(loaders, generators)
        self._are_states_restored = False
        return dropped

    def _reopen(self, *, is_known: bool) -> int:
        """Open the loaders as they were at the start of the epoch and pass over the batches that were consumed."""
        position, loaders = self._position, self.loader.flattened
        consumed = position.batches
        loaders_are_there = self._are_states_restored and (self._is_resumed_by_states or not is_known)
        num_to_drop = 0 if loaders_are_there else consumed
        if self._is_over() and not _is_stream(loaders[0]):
            self._opened = iter(()), consumed, _END
            return 0
        if is_known:
            self._set_start_of_epoch()
        else:
            position.batches = 0
            position.start(self._epoch, loaders, states=[])
            position.batches = consumed
        self._num_restarts, self._restarts_to_repeat = {}, position.restarts
        source = self._source()
        num_dropped = _drop(source, num_to_drop)
        if num_dropped < num_to_drop:
            rank_zero_warn(
                f"The checkpoint was written after {consumed} batches of the epoch, but the train dataloader ended"
                f" after {num_dropped}, so nothing of this epoch is left. Was it made from the same data?"
            )
        ahead: Any = _NOT_FETCHED
        if position.is_ahead:
            if position.rng_before_ahead is not None:
                set_rng_states(position.rng_before_ahead)
            ahead = next(source, _END)
        self._restarts_to_repeat = None
        self._opened = source, consumed, ahead
        return num_dropped

    def _is_over(self) -> bool:
        return self._position.batches >= self.num_batches or (not self.is_sized and self._position.is_over)

    def _set_start_of_epoch(self) -> None:
        position = self._position
        if position.rng_at_start is not None:
            set_rng_states(position.rng_at_start)
        set_generator_states(self.loader.flattened, position.generators_at_start)
        if not self._is_resumed_by_states:
            for loader, state in zip(self._stateful, position.states_at_start, strict=False):
                loader.load_state_dict(state)


class EvalBatches:
    """Passes over evaluation loaders: yields `(batch, batch_idx, dataloader_idx)`.

    Args:
        loader: The loaders, combined in any mode.
        limits: The most batches from each loader: numbers of batches, not fractions. An empty list: nothing is run.
        wrap_next: Wraps the function that fetches the next batch.
        ranks: The processes that evaluate together; every one of them has to make such an object and run its passes.

    Attributes:
        loader: The combined loader.
        num_batches: The most batches of each loader on this rank, `inf` where it is not known.
        global_num_batches: For each loader, the most batches of each rank.
        has_any: There is a batch on some rank.
        shards: For each loader, which part of its batches this rank has; `None` if it was not divided among ranks.
        is_sharded: Every loader was divided, so that batch i of rank r is batch i * W + r of one process.

    Raises:
        ValueError: There is not one limit for each loader.
    """

    def __init__(
        self,
        loader: CombinedLoader,
        limits: list[int | float],
        *,
        wrap_next: WrapNext | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        # settings
        self.loader = loader
        self.num_batches = [min(a, b) for a, b in zip(limits, loader.lengths(), strict=True)] if limits else []
        self._wrap_next = wrap_next
        self._ranks = _several(ranks)
        of_ranks = [self.num_batches] if self._ranks is None else self._ranks.gather_objects(self.num_batches)
        self.global_num_batches: list[list[int | float]] = [list(numbers) for numbers in zip(*of_ranks, strict=True)]
        self.has_any = any(number > 0 for numbers in self.global_num_batches for number in numbers)
        self.shards = [_shard_of(each) for each in loader.flattened]
        self.is_sharded = None not in self.shards
        # state
        self._live_workers: list[bool] = []
        self._running: weakref.ref[Generator[tuple[Any, int, int], None, None]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers which epoch it is.

        Args:
            epoch: Number of the epoch, from 0.
        """
        for loader in self.loader.flattened:
            set_sampler_epoch(loader, epoch)

    def global_batch_idx(self, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Return the index that a batch of this rank would have in a single process.

        Args:
            batch_idx: Its index on this rank.
            dataloader_idx: Index of the loader. If it was not divided among ranks, the index stays as it is.
        """
        shard = self.shards[dataloader_idx]
        return batch_idx if shard is None else shard.global_idx(batch_idx)

    def __iter__(self) -> Generator[tuple[Any, int, int], None, None]:
        """Start a pass; in the mode `"sequential"` each loader is opened when its turn comes."""
        if self._live_workers:
            generators = generator_states(self.loader.flattened)
            with isolate_rng(include_cuda=False):
                start_workers(self.loader.flattened, self._live_workers)
            set_generator_states(self.loader.flattened, generators)
            self._live_workers = []
        if self._ranks is not None:
            self._agree_on_orders()
        running = self._sequential() if self.loader.mode == "sequential" else self._together()
        self._running = weakref.ref(running)
        return running

    def _agree_on_orders(self) -> None:
        """Prepare the same order of samples on all ranks.

        Of one loader it is drawn where one process would draw it. Of several loaders all orders are drawn now: ranks
        come to the next loader at different times, and may talk about other things in between.
        """
        is_single = len(self.loader.flattened) == 1
        for loader, numbers in zip(self.loader.flattened, self.global_num_batches, strict=False):
            order = order_of(loader)
            if order is None or max(numbers) == 0:
                continue
            order.agree_on_next_pass(self._ranks)
            if not is_single:
                order.draw()
            elif self.num_batches[0] == 0:
                order.join()

    def _sequential(self) -> Generator[tuple[Any, int, int], None, None]:
        for dataloader_idx, limit in enumerate(self.num_batches):
            if limit <= 0:
                continue
            source = self._wrapped(iter(self.loader.flattened[dataloader_idx]))
            for batch_idx, batch in zip(count() if limit == inf else range(int(limit)), source):  # noqa: B905 - as above
                yield batch, batch_idx, dataloader_idx
            source = iter(())  # lets go of its workers before the next loader starts its own

    def _together(self) -> Generator[tuple[Any, int, int], None, None]:
        if self.num_batches:
            yield from self._wrapped(self.loader.opened(self.num_batches))

    def _wrapped(self, source: Iterator[Any]) -> Iterator[Any]:
        return source if self._wrap_next is None else _calls_until_stop(self._wrap_next(source.__next__))

    def close(self) -> None:
        """End the pass and shut down the workers of all loaders."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        for each in self.loader.flattened:
            agree_on_order(each, None)
        self.loader.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return what the order of samples in later passes depends on, as plain data."""
        loaders = self.loader.flattened
        return {"generators": generator_states(loaders), "live_workers": has_live_workers(loaders)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state: The state, from a run with loaders made in the same way.
        """
        set_generator_states(self.loader.flattened, state["generators"])
        self._live_workers = state["live_workers"]


def _calls_until_stop(fetch: Callable[[], Any]) -> Iterator[Any]:
    """Iterate over the results of a function that ends with `StopIteration`."""
    while True:
        try:
            batch = fetch()
        except StopIteration:
            return
        yield batch


def _is_stream(loader: Any) -> bool:
    """Whether a new pass over this goes on where the last one stopped.

    Only what Python itself makes is known to do so; an own class with `__next__` may well start again in `__iter__`.
    """
    return isinstance(loader, Iterator) and type(loader).__module__ in ("builtins", "itertools")


def _drop(source: Iterator[Any], number: int) -> int:
    """Fetch that many batches and return how many there were."""
    counter = count()
    deque(zip(islice(source, number), counter), maxlen=0)  # noqa: B905 - the counter has no end
    return next(counter)


# ---- several ranks


def _several(ranks: Ranks | None) -> Ranks | None:
    return ranks if ranks is not None and ranks.world_size > 1 else None


def _sampler_that_knows(loader: Any) -> LastBatch | None:
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)):
        if hasattr(sampler, "last_weight"):
            return sampler
    return None


def _shard_of(loader: Any) -> Shard | None:
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)):
        shard = getattr(sampler, "shard", None)
        if isinstance(shard, Shard):
            return shard
    return None


def _global_batch_size(loader: Any) -> int | None:
    """Samples in a batch of all ranks together, where it is known."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    size = getattr(loader, "batch_size", None) or getattr(batch_sampler, "batch_size", None)
    if not isinstance(size, int):
        return None
    shard = _shard_of(loader)
    if shard is None:  # it may be divided by the user's own sampler
        return size * int(getattr(getattr(batch_sampler, "sampler", None), "num_replicas", 1))
    return size * shard.num_replicas


def _warn_uneven_end(have: list[bool], num_batches: int) -> None:
    ended = [rank for rank, has_one in enumerate(have) if not has_one]
    more = [rank for rank, has_one in enumerate(have) if has_one]
    rank_zero_warn(
        f"The train dataloader ended after {num_batches} batches on the ranks {ended}, while the ranks {more} had more."
        " All ranks end the epoch together, so what was left on the others was not used in it. Divide the data evenly"
        " if every sample has to be seen."
    )
