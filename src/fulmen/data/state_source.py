"""A loader, or a dataset in this process, that tells and takes its own position."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from fulmen.data.position import has_live_workers, told_state
from fulmen.data.rng import raw_rng_states
from fulmen.data.sources import (
    Source,
    drop,
    own_state,
    plain_rng,
    plain_start,
    put_in_place,
    recorded_workers,
    restore_own,
    warn_unknown_workers,
    worker_position,
)
from fulmen.data.worker_rng import RecordedWorkers, WorkerPosition
from fulmen.data.worker_watch import open_watched
from fulmen.utilities.seed import isolate_rng, set_rng_states

__all__ = ["StateSource"]


class StateSource(Source):
    """A loader, or a dataset in this process, that tells its own position."""

    kind = "state"

    def __init__(self, loader: Any, owner: Any, is_followed: bool, is_read_ahead: bool) -> None:
        super().__init__(loader)
        # settings
        self._owner = owner
        self._is_followed = is_followed
        self._is_read_ahead = is_read_ahead
        self._has_workers = isinstance(loader, DataLoader) and loader.num_workers > 0
        every = getattr(loader, "snapshot_every_n_steps", 1) or 0
        self._snapshot_interval = every if self._has_workers else 1
        # state
        self._fetched = 0
        self._start: dict[str, Any] | None = None
        self._at_first: Any = None
        self._state_at_start: Any = None
        self._at_start: int = 0
        self._before: deque[tuple[int, Any]] = deque(maxlen=2)
        self._workers: RecordedWorkers | None = None
        self._num_of_worker: list[int] = []
        self._at_snapshot: list[int] = []
        self._done_at_start: list[int] = []
        self._snapshots: deque[tuple[int, list[int]]] = deque(maxlen=4)
        self._loaded_state: dict[str, Any] | None = None

    def open_new(self) -> Iterator[Any]:
        """Begin a pass."""
        self._loaded_state = None
        return self._open(None, consumed=0)

    def reopen(self, state: dict[str, Any]) -> Iterator[Any]:
        """Go on from a position inside of a pass."""
        self._loaded_state = None
        self._go_to_start(state)
        self._owner.load_state_dict(state["state"])
        position = worker_position(state, self._loader)
        if position is None and self._has_workers and self._snapshot_interval and state["start"] is not None:
            warn_unknown_workers()
        with self._seed_from_elsewhere():
            batches = self._open(position, consumed=state["consumed"] - state["num_to_drop"])
        self._start, self._at_first = state["start"], state["rng_at_first"]
        self.num_replayed = drop(batches, state["num_to_drop"], self._loader)
        restore_own(self._loader, state)
        return batches

    def _go_to_start(self, state: dict[str, Any]) -> None:
        """Set the generators that a sampler without a state draws from when it is begun again."""
        start, first = state["start"], state["rng_at_first"]
        if start is not None:
            set_rng_states(start["rng"])
            restore_own(self._loader, start, with_sampler=True)
        if first is not None and not self._has_workers:  # else it is asked for its first items as the loader is opened
            set_rng_states(first)

    @contextmanager
    def _seed_from_elsewhere(self) -> Iterator[None]:
        """In this process the seed of the workers is drawn before, and the sampler begins with its first item."""
        if self._has_workers or not isinstance(self._loader, DataLoader):
            yield
            return
        put_back = put_in_place(self._loader, {"generator": torch.Generator()})
        try:
            yield
        finally:
            put_back()

    def _open(self, position: WorkerPosition | None, *, consumed: int) -> Iterator[Any]:
        if self._is_followed:
            self._start = {"rng": raw_rng_states(), **own_state(self._loader, with_sampler=True)}
            self._at_first = None
        self._before = deque(maxlen=self.num_behind)
        self._snapshots = deque(maxlen=self.num_behind + 2)
        iterator = self._started(position)
        self._fetched = self._at_start = consumed
        if not self._is_followed:
            return iterator
        self._state_at_start = self._owner.state_dict()
        self._at_snapshot = self._done_at_start = list(self._num_of_worker)
        self._snapshots.append((consumed, self._at_snapshot))
        self._count_loaded_again(iterator)
        return self._counted(iterator)

    def _count_loaded_again(self, iterator: Any) -> None:
        """Count what torchdata loaded again because its last snapshot was some batches before."""
        if self._workers is None:
            return
        for i in range(self._state_at_start.get("_steps_since_snapshot", 0)):
            self._num_of_worker[(iterator._last_yielded_worker_id - i) % self._workers.num_workers] += 1

    def _started(self, position: WorkerPosition | None) -> Iterator[Any]:
        """Open the loader; its workers keep their random state."""
        loader, replaced = self._loader, {}
        if self._workers is not None and has_live_workers([loader])[0]:
            for worker_id, *_ in loader._iterator._task_info.values():  # they will be done before the next pass
                self._num_of_worker[worker_id] += 1
        elif self._has_workers and self._snapshot_interval:
            self._workers = recorded_workers(loader, position, self.num_behind + self._snapshot_interval)
            self._num_of_worker = [0] * loader.num_workers
            replaced = {} if self._workers is None else self._workers.wrapped(loader.collate_fn, loader.worker_init_fn)
        put_back = put_in_place(loader, replaced)
        try:
            iterator: Iterator[Any] = open_watched(loader)
        finally:
            put_back()
        return iterator

    def _counted(self, iterator: Iterator[Any]) -> Iterator[Any]:
        before, owner, workers = self._before, self._owner, self._workers
        if self._at_first is None:
            self._at_first = raw_rng_states()
        while True:
            if self._is_read_ahead:
                before.append((self._fetched, owner.state_dict()))
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._fetched += 1
            if workers is not None:
                self._num_of_worker[iterator._last_yielded_worker_id] += 1  # type: ignore[attr-defined]  # torchdata's
                if self._fetched % self._snapshot_interval == 0:
                    self._at_snapshot = list(self._num_of_worker)
                self._snapshots.append((self._fetched, self._at_snapshot))
            yield batch

    def state_inside(self, consumed: int) -> dict[str, Any]:
        """Tell the position inside of a pass."""
        num_to_drop = 0
        known = dict(self._before)
        if consumed == self._fetched:
            state = self._owner.state_dict()
        elif consumed in known:
            state = known[consumed]
        else:
            state, num_to_drop = self._state_at_start, consumed - self._at_start
        return {
            "state": state,
            "num_to_drop": num_to_drop,
            "start": plain_start(self._start),
            "rng_at_first": plain_rng(self._at_first),
            "workers": self._worker_state(consumed - num_to_drop),
            **own_state(self._loader),
        }

    def _worker_state(self, consumed: int) -> dict[str, Any] | None:
        num_done = {**dict(self._snapshots), self._at_start: self._done_at_start}.get(consumed)
        if self._workers is None or num_done is None:
            return None
        position = self._workers.position_of_each(num_done)
        return None if position is None else position.state_dict()

    def state_of_next_pass(self) -> dict[str, Any]:
        """Tell what later passes depend on."""
        if self._loaded_state is not None:
            return dict(self._loaded_state)
        workers = self._worker_state(self._fetched) if has_live_workers([self._loader])[0] else None
        return {
            "state": told_state(self._owner),
            "num_to_drop": 0,
            "workers": workers,
            **own_state(self._loader, with_sampler=True),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take what later passes depend on."""
        self._workers = None
        if state["is_over"]:
            self._begin_after(state, with_sampler=True)

    def skip_rest(self, state: dict[str, Any]) -> None:
        """Do not go on inside of the pass that was loaded."""
        self._begin_after(state, with_sampler=False)

    def _begin_after(self, state: dict[str, Any], *, with_sampler: bool) -> None:
        """Leave the loader as it is after a pass, so that it does not go on inside of the old one."""
        self._loaded_state = {key: state[key] for key in state if key not in ("kind", "consumed", "is_over")}
        self._owner.load_state_dict(state["state"])
        is_begun = state["state"] != {}  # else there is no old pass
        if is_begun and self._owner is self._loader and isinstance(self._loader, DataLoader):
            with isolate_rng(include_cuda=False):
                self._started(worker_position(state, self._loader) if self._loader.persistent_workers else None)
        restore_own(self._loader, state, with_sampler=with_sampler)
