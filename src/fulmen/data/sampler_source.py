"""A DataLoader over a dataset with indices: its sampler passes over what was consumed, and nothing is loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from fulmen.data.combined_loader import length_of, shut_down_workers
from fulmen.data.draws import SamplerMemory, SamplerPass
from fulmen.data.position import has_live_workers
from fulmen.data.sources import (
    Source,
    drop,
    own_state,
    put_in_place,
    recorded_workers,
    restore_own,
    warn_shorter,
    warn_unknown_workers,
    worker_position,
)
from fulmen.data.worker_rng import RecordedWorkers, WorkerPosition
from fulmen.data.worker_watch import open_watched
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["SamplerSource"]


class SamplerSource(Source):
    """A DataLoader over a dataset with indices."""

    kind = "sampler"

    def __init__(self, loader: Any, is_followed: bool) -> None:
        super().__init__(loader)
        # settings
        self._is_followed = is_followed
        self._has_workers = loader.num_workers > 0
        self._is_in_order = getattr(loader, "in_order", True) or not self._has_workers
        self._iterates_itself = type(loader).__iter__ is not DataLoader.__iter__
        self._memory = SamplerMemory(loader)
        self._num_prefetched = (loader.prefetch_factor or 2) * loader.num_workers
        self._is_in_order |= self._iterates_itself  # as far as we know
        self._pass = SamplerPass(
            loader._index_sampler,
            self._memory,
            logs=self._is_in_order and (self._iterates_itself or not self._memory.is_known),
        )
        # state
        self._workers: RecordedWorkers | None = None
        self._dropped = 0
        self._num_fetched = 0  # only counted of a loader that iterates itself
        self._arrivals: _Arrivals | None = None
        self._given: dict[str, Any] | None = None

    def open_new(self) -> Iterator[Any]:
        """Begin a pass."""
        given, self._given = self._given, None
        self._dropped = 0
        if not self._is_followed and not self._loader.persistent_workers:
            return open_watched(self._loader)
        workers = worker_position(given, self._loader) if self._loader.persistent_workers else None
        return self._open(None, workers, as_if_alive=workers is not None)

    def reopen(self, state: dict[str, Any]) -> Iterator[Any]:
        """Go on from a position inside of a pass."""
        self._given = None
        self._warn_of_other_workers(state)
        batches = self._open(state["pass"], worker_position(state, self._loader))
        self._dropped = consumed = state["pass"]["consumed"]
        if self._pass.is_open and consumed > 0:
            self._pass.seek()
            if self._pass.num_dropped < consumed:
                warn_shorter(consumed, self._pass.num_dropped)
        self.num_replayed = drop(batches, state["num_to_load"], self._loader)
        restore_own(self._loader, state)
        return batches

    def reopen_by_count(self, consumed: int) -> Iterator[Any]:
        """Begin a pass and go on after so many batches."""
        self._given, self._dropped, self.num_replayed = None, consumed, 0
        batches = self._open({"consumed": consumed}, None)
        if self._pass.is_open and consumed > 0:
            self._pass.seek()
        return batches

    def _open(
        self, to_reach: dict[str, Any] | None, workers: WorkerPosition | None, *, as_if_alive: bool = False
    ) -> Iterator[Any]:
        loader = self._loader
        is_alive = loader.persistent_workers and loader._iterator is not None
        if is_alive and loader._iterator._index_sampler is not self._pass:
            shut_down_workers(loader)  # somebody else has started them, nothing is known of them
            is_alive = False
        window = self._num_prefetched + self.num_behind + 1
        self._pass.begin(to_reach, window=window, as_if_alive=as_if_alive)
        name = "sampler" if loader.batch_sampler is None else "batch_sampler"
        replaced: dict[str, Any] = {name: self._pass}
        if is_alive and self._workers is not None:
            self._workers.next_pass(loader._iterator)
        elif self._has_workers and self._is_in_order and not is_alive:
            self._workers = recorded_workers(loader, workers, self.num_behind)
            if self._workers is not None:
                replaced |= self._workers.wrapped(loader.collate_fn, loader.worker_init_fn)
        put_back = put_in_place(loader, replaced)
        try:
            iterator: Any = open_watched(loader)
        except BaseException:
            put_back()
            raise
        if self._pass.is_open:
            put_back()
        else:  # a subclass that opens itself when its first batch is asked for
            self._pass.after_first_draw = put_back
        if self._iterates_itself:
            self._num_fetched = 0 if to_reach is None else to_reach["consumed"]
            return self._counted(iterator)
        if self._is_in_order:
            return iterator  # type: ignore[no-any-return]  # an iterator
        self._arrivals = _Arrivals(iterator, to_reach, self.num_behind)
        return iter(self._arrivals)

    def _counted(self, iterator: Iterator[Any]) -> Iterator[Any]:
        for batch in iterator:
            self._num_fetched += 1
            yield batch

    def state_inside(self, consumed: int) -> dict[str, Any]:
        """Tell the position inside of a pass."""
        num_to_load = 0
        if self._iterates_itself and not self._dropped and not self._is_one_draw_a_batch(consumed):
            num_to_load, consumed = consumed, 0
        state: dict[str, Any] = {
            "pass": self._pass.state_dict(consumed),
            "num_to_load": num_to_load,
            "num_workers": self._loader.num_workers,
        }
        if num_to_load:
            del state["pass"]["checksum"]  # the sampler is not known to have been asked as often
        if self._arrivals is not None:
            state["pass"] |= self._arrivals.state_after(consumed)
        if self._workers is not None:
            position = self._workers.position_after(consumed - self._dropped)
            state["workers"] = None if position is None else position.state_dict()
        return state | own_state(self._loader)

    def _is_one_draw_a_batch(self, consumed: int) -> bool:
        """Whether a loader that iterates in its own way gives one batch for each that it draws."""
        if consumed <= 1 or not self._pass.is_open:  # one batch tells nothing, and is soon loaded again
            return False
        expected = self._num_fetched + self._num_prefetched
        return self._pass.num_drawn in (expected, min(expected, length_of(self._loader)))

    def state_of_next_pass(self) -> dict[str, Any]:
        """Tell what later passes depend on."""
        if self._given is not None:
            return dict(self._given)
        held = self._memory.state()
        self._memory.changed(held)
        state = {"pass": {"held": held}, "num_workers": self._loader.num_workers, **own_state(self._loader)}
        if self._workers is not None and self._loader.persistent_workers and has_live_workers([self._loader])[0]:
            position = self._workers.position_for_next_pass(self._loader._iterator)
            state["workers"] = None if position is None else position.state_dict()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Take what later passes depend on."""
        self._workers = self._arrivals = None
        if "pass" in state:
            self._memory.restore(state["pass"]["held"])
            if state["is_over"]:
                self._memory.end_pass(state["pass"]["held"])
            restore_own(self._loader, state)
        self._given = state if state["is_over"] and "pass" in state else None

    def skip_rest(self, state: dict[str, Any]) -> None:
        """Do not go on inside of the pass that was loaded."""
        if "pass" in state:
            self._given = {**state, "workers": None}

    def _warn_of_other_workers(self, state: dict[str, Any]) -> None:
        now = self._loader.num_workers
        if state["num_workers"] != now:
            rank_zero_warn(
                f"The checkpoint was written with `DataLoader(num_workers={state['num_workers']})`, and there are {now}"
                " workers now: the order of the samples goes on exactly, but random numbers drawn while samples are"
                f" loaded do not. Use `num_workers={state['num_workers']}` if these have to be the same, too."
            )
        elif now and self._is_in_order and state.get("workers") is None and state["consumed"]:
            warn_unknown_workers()


class _Arrivals:
    """The batches of workers that answer in any order, and which of those asked for are still to come."""

    def __init__(self, iterator: Any, to_reach: dict[str, Any] | None, num_behind: int) -> None:
        self._iterator = iterator
        old = (to_reach or {}).get("pending_ids")
        self._consumed = (to_reach or {}).get("consumed", 0)
        self._first_new = (to_reach or {}).get("drawn", 0)
        self._old_ids: list[int] = list(old or ())
        self._recent: deque[tuple[int, list[int], int]] = deque(maxlen=num_behind + 1)

    def __iter__(self) -> Iterator[Any]:
        self._note()
        for batch in self._iterator:
            self._consumed += 1
            self._note()
            yield batch

    def _note(self) -> None:
        iterator = self._iterator
        self._recent.append((self._consumed, list(iterator._task_info), iterator._send_idx))

    def state_after(self, consumed: int) -> dict[str, Any]:
        for number, pending, num_sent in self._recent:
            if number == consumed:
                return {
                    "pending_ids": sorted([*map(self._sampler_idx, pending), *self._old_ids[num_sent:]]),
                    "drawn": max(self._sampler_idx(num_sent), self._first_new),
                }
        return {}

    def _sampler_idx(self, task_id: int) -> int:
        """Number that an item of the sampler has in the whole pass: those that were pending have been sent first."""
        old = self._old_ids
        return old[task_id] if task_id < len(old) else self._first_new + task_id - len(old)
