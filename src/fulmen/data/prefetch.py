"""The iterators that the loops run on: limits, knowing the last batch, and going on inside an epoch."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import count, islice
from math import inf
from operator import itemgetter
from typing import Any, NamedTuple

from fulmen.data.combined_loader import CombinedLoader, Rows, length_of
from fulmen.data.old_position import begin_old_position, restore_old_generators
from fulmen.data.position import LoaderPosition, is_stateful, told_state
from fulmen.data.redivide import Opening, global_batch_size, redivided
from fulmen.data.resumable import ResumableLoader
from fulmen.data.rng import plain_rng_states, raw_rng_states, set_raw_rng_states
from fulmen.data.sampler import LastBatch, set_sampler_epoch
from fulmen.data.shard import Ranks, Shard, agree_on_order, order_of
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import set_rng_states

__all__ = ["EvalBatches", "TrainBatches", "WrapNext"]

WrapNext = Callable[[Callable[[], Any]], Callable[[], Any]]
"""Takes the function that fetches the next batch and returns one to use instead, e.g. one that measures time."""

_END = object()
_NOT_FETCHED = object()

_Opened = tuple[Iterator[Any], int, Any]  # the batches to come, the index of the first of them, one fetched before
_Randomness = tuple[int, tuple[Any, ...], list[list[Any]]]  # before a batch: of this process, of each dataset
_EarlierPass = tuple[int, bool, dict[int, dict[str, Any]]]  # first row, if it had ended before, last positions


class _Pass(NamedTuple):
    """The position of one loader and how its pass lies beside those of the others; see `Rows`."""

    state: dict[str, Any]
    first_rows: int = 0
    has_ended: bool = False
    ended_at: int | None = None
    is_exhausted: bool = False


_ROWS_NAMES = _Pass._fields[1:]


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
        num_behind: The most batches that were handed out and that a position may not count. Read at the start of an
            epoch.
        notes_requests: Keep the random numbers with which each batch was asked for, so that a position is exact that
            does not count it although it was handed out. Takes about 50 us per batch. Read at the start of an epoch.

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
        # parts
        self._stateful = [each for each in loader.flattened if is_stateful(each)]
        self._resumables = self._new_resumables()
        # state
        self.ended_early = False
        self.num_behind = 1
        self.notes_requests = False
        self._has_warned_uneven = False
        self._epoch = 0
        self._position = LoaderPosition()
        self._rows: Rows | None = None
        self._earlier_passes: list[deque[_EarlierPass]] = []
        self._before_ahead: deque[_Randomness] = deque(maxlen=2)
        self._requests: deque[_Randomness] = deque(maxlen=1)
        self._running: weakref.ref[Generator[tuple[Any, int, bool], None, None]] | None = None
        # state between loading a position and reaching it
        self._to_reach: dict[str, Any] | None = None
        self._opening = Opening()
        self._states: list[Any] = []
        self._opened: _Opened | None = None

    def _new_resumables(self) -> list[ResumableLoader]:
        return [ResumableLoader(each, is_read_ahead=not self.is_sized) for each in self.loader.flattened]

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
            _sampler_that_knows(each) if length_of(each) + self._opening.batch == self.num_batches else None
            for each in self.loader.flattened
        ]

    # ---- epochs

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers which epoch comes next. A loaded position counts only for the epoch that it belongs to.

        Args:
            epoch: Number of the epoch, from 0.
        """
        if epoch != self._epoch:
            self._opening.forget(self.loader)
        self._epoch = epoch
        for loader in self.loader.flattened:
            set_sampler_epoch(loader, epoch)

    def set_start(self, batch_idx: int) -> None:
        """Begin the next pass with this batch, where no more is known about the position.

        Args:
            batch_idx: Index of the first batch to yield.
        """
        self._to_reach = {"position": LoaderPosition(self._epoch, batch_idx).state_dict()}
        self._opened = None

    def __iter__(self) -> Generator[tuple[Any, int, bool], None, None]:
        """Open the loaders, go to the loaded position if there is one, and return a generator."""
        self.replay()
        source, first, ahead = self._opened or self._open_new_epoch()
        self._opened = None
        self.ended_early = False
        self._requests = deque(maxlen=self.num_behind)
        if self._wrap_next is not None:
            source = _calls_until_stop(self._wrap_next(source.__next__))
        running = self._sized(source, first) if self.is_sized else self._one_ahead(source, first, ahead)
        self._running = weakref.ref(running)  # weak: the workers shall end as soon as the loop lets go of the generator
        return running

    def _sized(self, source: Iterator[Any], first: int) -> Generator[tuple[Any, int, bool], None, None]:
        position = self._position
        last = int(self.num_batches) - 1
        batch_idx = first - 1
        notes = self.notes_requests
        if notes:
            self._requests.append(self._randomness(first))
        # The range comes first: when it ends, `zip` does not fetch another batch.
        for batch_idx, batch in zip(range(first, last + 1), source):  # noqa: B905
            position.batches = batch_idx + 1
            yield batch, batch_idx, batch_idx == last
            if notes:
                self._requests.append(self._randomness(batch_idx + 1))
        self.ended_early = batch_idx < last

    def _one_ahead(
        self, source: Iterator[Any], batch_idx: int, batch: Any
    ) -> Generator[tuple[Any, int, bool], None, None]:
        last = self.num_batches - 1
        if batch_idx > last:
            return
        position = self._position
        together = self._ranks is not None
        notes = self.notes_requests
        if batch is _NOT_FETCHED:
            batch = self._fetch_ahead(source, batch_idx)
            if together:
                batch = self._agreed(batch, batch_idx)
        while batch is not _END:
            if notes:
                self._requests.append(self._randomness(batch_idx))
            following = self._fetch_ahead(source, batch_idx + 1) if batch_idx < last else _END
            if together and batch_idx < last:
                following = self._agreed(following, batch_idx + 1)
            position.batches = batch_idx + 1
            position.is_over = following is _END
            position.is_ahead = not position.is_over
            yield batch, batch_idx, position.is_over
            batch = following
            batch_idx += 1

    def _fetch_ahead(self, source: Iterator[Any], batch_idx: int) -> Any:
        """Fetch a batch and keep what is needed to fetch it again: a checkpoint may be written before it is used."""
        if not self._is_fetched_by_workers:
            self._before_ahead.append(self._randomness(batch_idx))
        return next(source, _END)

    def _randomness(self, batch_idx: int) -> _Randomness:
        return batch_idx, raw_rng_states(), [each.own_states() for each in self._resumables]

    def _agreed(self, batch: Any, batch_idx: int) -> Any:
        """The batch if all ranks have one, so that they end together."""
        ranks, has_one = self._ranks, batch is not _END
        if ranks is None or ranks.agree([int(has_one)], "min")[0]:
            return batch
        if not self._has_warned_uneven:
            have = ranks.gather_objects(has_one)
            if any(have):
                self._has_warned_uneven = True
                _warn_uneven_end(have, batch_idx)
        return _END

    def _open_new_epoch(self) -> _Opened:
        self._position = LoaderPosition(self._epoch)
        self._forget_earlier()
        return self._source(), 0, _NOT_FETCHED

    def _forget_earlier(self) -> None:
        self._before_ahead = deque(maxlen=self.num_behind + 1)
        self._earlier_passes = [deque(maxlen=self.num_behind + 1) for _ in self._resumables]
        for each in self._resumables:
            each.num_behind = self.num_behind + (not self.is_sized)

    def _source(self, rows: dict[str, Any] | None = None, *, row: int = 0) -> Iterator[Any]:
        """Open the loaders: at the start of an epoch, or at the positions that they have loaded."""
        loader = self.loader
        self._states = []
        if self._ranks is not None:
            for each in loader.flattened:
                agree_on_order(each, self._ranks)
        if loader.is_single:
            self._rows = None
            return self._resumables[0].open()
        self._rows = Rows(self._open, len(self._resumables), row, **(rows or {}))
        return map(itemgetter(0), loader.opened(self._limits(), going_on=self._rows))

    def _limits(self) -> list[int | float]:
        return self.loader.limits or [inf] * len(self._resumables)

    def _open(self, index: int, row: int) -> Iterator[Any]:
        """Open one of several loaders for its first pass of the epoch, to go on, or again because it has ended."""
        rows, resumable = self._rows, self._resumables[index]
        if rows is None:
            raise RuntimeError("Loaders are opened one by one only if there are several of them.")
        consumed = 0
        if resumable.is_going_on:
            consumed = row - rows.first_rows[index]
        elif row > 0:
            self._keep_earlier_pass(index, row)
            self._opening.forget(self.loader, index)
            if self._ranks is not None:  # without lengths, ranks may come here after different numbers of batches
                agree_on_order(resumable.loader, self._ranks, may_talk=self.is_sized)
        limit = self._limits()[index]
        if limit == inf:
            return resumable.open()
        return islice(resumable.open(), int(limit) - consumed) if limit > 0 else iter(())

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

    def state_dict(self, batches: int | None = None, *, is_over: bool = False) -> dict[str, Any]:
        """Return where the loaders stand, as plain data.

        Args:
            batches: Number of batches of this epoch that count as consumed, default those that were handed out.
            is_over: The epoch is over, although there might be more batches.
        """
        if self._to_reach is not None:  # nothing was opened since
            return self._to_reach
        if batches is None:
            batches = self._position.batches
        is_over = is_over or self._is_over(self._position, batches)
        position = replace(self._position, batches=batches, is_over=is_over)
        position.rng_before_ahead, position.own_before_ahead = _of_batch(self._before_ahead, batches, is_over)
        position.is_ahead = position.rng_before_ahead is not None
        passes = [self._pass_of(i, batches, is_over=is_over) for i in range(len(self._resumables))]
        position.loaders = [each.state for each in passes]
        position.rows = None
        if self._rows is not None and not is_over:
            position.rows = {name: [getattr(each, name) for each in passes] for name in _ROWS_NAMES}
        rng_at_request, own_at_request = _of_batch(self._requests, batches, is_over)
        loaders = self.loader.flattened
        return {
            "position": position.state_dict(),
            # The random numbers with which the loop asks for the next batch, if it has done that already.
            "rng_at_request": rng_at_request,
            "own_at_request": own_at_request,
            # For a run on another number of ranks: `batches` of the position are those of one rank.
            "num_replicas": self._num_replicas(),
            "batch_size": [global_batch_size(each) for each in loaders],
            "num_batches": self.num_batches,
            "opening": self._opening.state_dict(),
        }

    def _keep_earlier_pass(self, index: int, row: int) -> None:
        """Keep the end of the pass of a loader that starts again: the batches of this row may not count as consumed."""
        rows, resumable = self._rows, self._resumables[index]
        if rows is None or resumable.is_loaded:
            return
        first_row = rows.first_rows[index]
        end = row - first_row
        states = {i: resumable.state_dict(i) for i in range(max(0, end - resumable.num_behind), end)}
        states[end] = resumable.state_dict(end, is_over=True)
        self._earlier_passes[index].append((first_row, rows.has_ended[index], states))

    def _pass_of(self, index: int, batches: int, *, is_over: bool) -> _Pass:
        """Where a loader stands that is going to be asked for its batch of the row with this index."""
        resumable, rows = self._resumables[index], self._rows
        if rows is None or is_over:
            return _Pass(resumable.state_dict(batches - self._opening.batch, is_over=is_over))
        first_row, has_ended, states = rows.first_rows[index], rows.has_ended[index], None
        for earlier in reversed(self._earlier_passes[index]):
            if first_row < batches:
                break
            first_row, has_ended, states = earlier
        ended_at, consumed = rows.ended_at[index], batches - first_row
        if states is not None and consumed in states:
            state = states[consumed]
            return _Pass(state, first_row, has_ended, None, state["is_over"])
        if ended_at is not None and ended_at > batches:
            ended_at = None
        is_exhausted = ended_at is not None or consumed >= min(length_of(resumable.loader), self._limits()[index])
        state = resumable.state_dict(consumed, is_over=is_exhausted)
        return _Pass(state, first_row, has_ended, ended_at, is_exhausted)

    def _num_replicas(self) -> int:
        return 1 if self._ranks is None else Shard.of(self._ranks).num_replicas

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the next pass goes on from there if it is of the same epoch.

        Args:
            state: The position, from a run with loaders made in the same way.
        """
        if state["position"]["epoch"] == self._epoch:
            shard = Shard(0, 1) if self._ranks is None else Shard.of(self._ranks)
            state, self._opening = redivided(self.loader, state, num_batches=self.num_batches, shard=shard)
            if self._opening.passed:  # some may have been replaced
                self._resumables = self._new_resumables()
        self._to_reach, self._opened = state, None

    @property
    def num_consumed(self) -> int:
        """Number of batches of this epoch before the one that comes next."""
        position = self._position.batches if self._to_reach is None else self._to_reach["position"]["batches"]
        return int(position)

    def loader_states(self) -> list[Any]:
        """Return `state_dict()` of each loader that has it, as it is now."""
        if self._states:  # nothing was opened since they were loaded
            return list(self._states)
        return [told_state(each) for each in self._stateful]

    def load_loader_states(self, states: list[Any]) -> None:
        """Keep the states of loaders for the case that a checkpoint has no more than them.

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
        self._states = states

    def replay(self) -> int:
        """Go to the position that was loaded or set, if there is one. `iter()` does it too.

        Afterwards the random number generators of this process are as they were before.

        Returns:
            The number of batches that were loaded and dropped for that.
        """
        if self._to_reach is None:
            return 0
        state, self._to_reach = self._to_reach, None
        before = raw_rng_states()
        position = self._position = LoaderPosition.from_state_dict(state["position"])
        self._forget_earlier()
        self._requests.clear()
        goes_on = self._load_loaders(position) if position.loaders else self._load_without_loaders(state)
        num_loaded = self._reopen(state["position"]) if goes_on else 0
        self._set_own_states(state.get("own_at_request", []))
        set_raw_rng_states(before)
        return num_loaded

    def _load_loaders(self, position: LoaderPosition) -> bool:
        """Give each loader its position; tell if the epoch goes on inside."""
        for each, state in zip(self._resumables, position.loaders, strict=False):
            each.load_state_dict(state)
        was_opened = position.batches > 0 or not all(state["is_over"] for state in position.loaders)
        if position.epoch == self._epoch and not position.is_over and was_opened:
            return True
        for each in self._resumables:
            each.skip_rest()
        if position.epoch == self._epoch and position.batches > 0:
            self._opened = iter(()), position.batches, _END
        return False

    def _load_without_loaders(self, state: dict[str, Any]) -> bool:
        """Do what can be done with a number of batches, or with the position that an earlier version wrote."""
        position = self._position
        goes_on = position.epoch == self._epoch and position.batches > 0
        begin_old_position(state, self.loader.flattened, goes_on=goes_on)
        is_over = self._is_over(position, position.batches)
        if self._states:
            stateful = [each for each in self._resumables if is_stateful(each.loader)]
            for each, own in zip(stateful, self._states, strict=True):
                each.load_own_state(own, position.batches, is_over=is_over or not goes_on)
        if goes_on and is_over:
            self._opened = iter(()), position.batches, _END
        return goes_on and not is_over

    def _reopen(self, position_state: dict[str, Any]) -> int:
        """Open the loaders where they were."""
        position = self._position
        consumed = position.batches
        num_loaded = 0
        if position.loaders:
            source = self._source(position.rows, row=consumed)
        elif self.loader.is_single:
            if not self._resumables[0].is_going_on and "rng_at_start" not in position_state:
                self._resumables[0].load_state_dict({"consumed": consumed})
            source = self._source()
            if not self._resumables[0].has_gone_on:
                num_loaded = _drop(source, consumed)
        else:
            source = self._source()
            num_loaded = _drop(source, consumed)
        num_loaded += sum(each.num_replayed for each in self._resumables)
        ahead: Any = _NOT_FETCHED
        if position.is_ahead:
            if position.rng_before_ahead is not None:
                set_rng_states(position.rng_before_ahead)
            self._set_own_states(position.own_before_ahead)
            ahead = self._fetch_ahead(source, consumed)
        self._opened = source, consumed, ahead
        return num_loaded

    def _set_own_states(self, states: list[list[Any]]) -> None:
        for each, own in zip(self._resumables, states, strict=False):
            each.set_own_states(own)

    def _is_over(self, position: LoaderPosition, batches: int) -> bool:
        if batches >= self.num_batches:
            return True
        return position.is_over and batches == position.batches


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
        # parts
        self._resumables = [ResumableLoader(each, is_followed=False) for each in loader.flattened]
        # state
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
            source = self._wrapped(self._resumables[dataloader_idx].open())
            for batch_idx, batch in zip(count() if limit == inf else range(int(limit)), source):  # noqa: B905 - as above
                yield batch, batch_idx, dataloader_idx
            source = iter(())  # lets go of its workers before the next loader starts its own

    def _together(self) -> Generator[tuple[Any, int, int], None, None]:
        if self.num_batches:
            rows = Rows(self._open, len(self._resumables))
            yield from self._wrapped(self.loader.opened(self.num_batches, going_on=rows))

    def _open(self, index: int, row: int) -> Iterator[Any]:
        limit = self.num_batches[index]
        if limit <= 0:
            return iter(())
        batches = self._resumables[index].open()
        return batches if limit == inf else islice(batches, int(limit))

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
        return {"loaders": [each.state_dict(0, is_over=True) for each in self._resumables]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state: The state, from a run with loaders made in the same way.
        """
        if "loaders" not in state:
            restore_old_generators(state, self.loader.flattened)
        for each, own in zip(self._resumables, state.get("loaders", ()), strict=False):
            each.load_state_dict(own)


def _calls_until_stop(fetch: Callable[[], Any]) -> Iterator[Any]:
    """Iterate over the results of a function that ends with `StopIteration`."""
    while True:
        try:
            batch = fetch()
        except StopIteration:
            return
        yield batch


def _of_batch(
    noted: deque[_Randomness], batch_idx: int, is_over: bool
) -> tuple[dict[str, Any] | None, list[list[Any]]]:
    """What was noted before a batch, as plain data."""
    for idx, rng, own in noted:
        if idx == batch_idx and not is_over:
            return plain_rng_states(rng), own
    return None, []


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


def _warn_uneven_end(have: list[bool], num_batches: int) -> None:
    ended = [rank for rank, has_one in enumerate(have) if not has_one]
    more = [rank for rank, has_one in enumerate(have) if has_one]
    rank_zero_warn(
        f"The train dataloader ended after {num_batches} batches on the ranks {ended}, while the ranks {more} had more."
        " All ranks end the epoch together, so what was left on the others was not used in it. Divide the data evenly"
        " if every sample has to be seen."
    )
