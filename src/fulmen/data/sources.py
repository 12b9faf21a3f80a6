"""What kinds of loaders share that tell and reach a position, and the two kinds that cannot tell theirs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from fulmen.data.position import has_live_workers
from fulmen.data.rng import find_generators, generator_state, plain_rng_states, raw_rng_states, set_generator_state
from fulmen.data.worker_rng import RecordedWorkers, WorkerPosition
from fulmen.data.worker_watch import open_watched
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import set_rng_states

__all__ = [
    "RepeatedSource",
    "Source",
    "StreamSource",
    "drop",
    "generators_inside",
    "own_state",
    "plain_rng",
    "plain_start",
    "put_in_place",
    "recorded_workers",
    "restore_own",
    "warn_shorter",
    "warn_unknown_workers",
    "worker_position",
]


class Source(ABC):
    """How the position of one kind of loader is told and reached."""

    kind: str

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.num_replayed = 0
        self.num_behind = 1

    @abstractmethod
    def open_new(self) -> Iterator[Any]:
        """Begin a pass."""

    @abstractmethod
    def reopen(self, state: dict[str, Any]) -> Iterator[Any]:
        """Go on from a position inside of a pass. The caller puts the generators of the process back."""

    def reopen_by_count(self, consumed: int) -> Iterator[Any]:
        """Begin a pass and go on after so many batches."""
        batches = self.open_new()
        self.num_replayed = drop(batches, consumed, self._loader)
        return batches

    @abstractmethod
    def state_inside(self, consumed: int) -> dict[str, Any]:
        """Tell the position inside of a pass."""

    @abstractmethod
    def state_of_next_pass(self) -> dict[str, Any]:
        """Tell what later passes depend on."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Take what later passes depend on."""

    def skip_rest(self, state: dict[str, Any]) -> None:  # noqa: B027 - most kinds begin anew without more ado
        """Do not go on inside of the pass that was loaded."""


class StreamSource(Source):
    """An iterator of Python: a new pass goes on where the last one stopped."""

    kind = "stream"

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._drawn = self._drawn_before = 0

    def open_new(self) -> Iterator[Any]:
        """Begin a pass."""
        self._drawn_before = self._drawn
        return self._counted()

    def _counted(self) -> Iterator[Any]:
        for batch in self._loader:
            self._drawn += 1
            yield batch

    def reopen(self, state: dict[str, Any]) -> Iterator[Any]:
        """Go on from a position inside of a pass."""
        self._catch_up(state["drawn_before"] + state["consumed"])
        self._drawn_before = state["drawn_before"]
        return self._counted()

    def _catch_up(self, number: int) -> None:
        self.num_replayed = drop(self._loader, number - self._drawn, self._loader)
        self._drawn = number

    def state_inside(self, consumed: int) -> dict[str, Any]:
        """Tell the position inside of a pass."""
        return {"drawn_before": self._drawn_before, "drawn": self._drawn}

    def state_of_next_pass(self) -> dict[str, Any]:
        """Tell what later passes depend on."""
        return {"drawn_before": self._drawn_before, "drawn": self._drawn}

    def load(self, state: dict[str, Any]) -> None:
        """Take what later passes depend on."""
        if state["is_over"]:
            self._catch_up(state["drawn"])

    def skip_rest(self, state: dict[str, Any]) -> None:
        """Do not go on inside of the pass that was loaded."""
        self._catch_up(state["drawn"])


class RepeatedSource(Source):
    """Anything else: a pass is begun again and what was consumed is loaded and dropped."""

    kind = "repeat"

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._at_start: dict[str, Any] | None = None
        self._at_first: tuple[Any, ...] | dict[str, Any] | None = None
        self._was_alive = False

    def note_start(self) -> None:
        """Keep what a pass that begins now depends on."""
        self._at_start = {"rng": raw_rng_states(), **own_state(self._loader, with_sampler=True)}
        self._at_first = None
        self._was_alive = has_live_workers([self._loader])[0]

    def open_new(self) -> Iterator[Any]:
        """Begin a pass."""
        self.note_start()
        return chain(self._noted(), open_watched(self._loader))  # in C: no Python call per batch

    def _noted(self) -> Iterator[Any]:
        """Gives nothing, but notes the random numbers with which the first batch is fetched."""
        self._at_first = raw_rng_states()
        return
        yield

    def reopen(self, state: dict[str, Any]) -> Iterator[Any]:
        """Go on from a position inside of a pass."""
        start = state["start"]
        set_rng_states(start["rng"])
        restore_own(self._loader, start, with_sampler=True)
        self._at_start, self._at_first, self._was_alive = start, state["rng_at_first"], state["was_alive"]
        if self._was_alive:
            _warn_restarted_workers(self._loader)
        batches: Iterator[Any] = open_watched(self._loader)
        if state["rng_at_first"] is not None:
            set_rng_states(state["rng_at_first"])
        self.num_replayed = drop(batches, state["consumed"], self._loader)
        return batches

    def state_inside(self, consumed: int) -> dict[str, Any]:
        """Tell the position inside of a pass."""
        return {
            "start": plain_start(self._at_start),
            "rng_at_first": plain_rng(self._at_first),
            "was_alive": self._was_alive,
            **own_state(self._loader, with_sampler=True),
        }

    def state_of_next_pass(self) -> dict[str, Any]:
        """Tell what later passes depend on."""
        return own_state(self._loader, with_sampler=True)

    def load(self, state: dict[str, Any]) -> None:
        """Take what later passes depend on."""
        restore_own(self._loader, state, with_sampler=True)


# ---- parts


def put_in_place(loader: Any, replaced: dict[str, Any]) -> Callable[[], None]:
    """Set attributes of a loader, also those that a DataLoader lets nobody set; return what puts them back."""
    attributes = vars(loader)
    before = {name: attributes[name] for name in replaced}
    attributes.update(replaced)
    return lambda: attributes.update(before)


def recorded_workers(loader: Any, position: WorkerPosition | None, num_behind: int) -> RecordedWorkers | None:
    """Return the workers that a loader is going to start; `None` if there is no memory to note their random states."""
    try:
        return RecordedWorkers(loader, position=position, num_behind=num_behind)
    except RuntimeError:  # no shared memory left; said where it matters, when a run is resumed
        return None


def worker_position(state: dict[str, Any] | None, loader: Any) -> WorkerPosition | None:
    """Return where workers stood by a position of a loader; `None` if it says nothing, or there are others now."""
    saved = None if state is None else state.get("workers")
    return None if saved is None or len(saved["states"]) != loader.num_workers else WorkerPosition(**saved)


def generators_inside(loader: Any, *, with_sampler: bool = False) -> list[Any]:
    """Return generators of the dataset and of what prepares samples; of loader and sampler, too, if asked for."""
    if not isinstance(loader, DataLoader):
        return find_generators([loader])
    inside = [loader.dataset, loader.collate_fn]
    outside = [loader.generator, loader.sampler, loader.batch_sampler]
    if with_sampler:
        return find_generators([*outside, *inside])
    return find_generators(inside, without=find_generators(outside, without=inside))


def own_state(loader: Any, *, with_sampler: bool = False) -> dict[str, Any]:
    """Return the states of generators that the dataset, and if asked for the loader and its samplers, hold."""
    return {"generators": [generator_state(each) for each in generators_inside(loader, with_sampler=with_sampler)]}


def restore_own(loader: Any, state: dict[str, Any], *, with_sampler: bool = False) -> None:
    """Put back what `own_state` returned, for a loader made in the same way."""
    generators, states = generators_inside(loader, with_sampler=with_sampler), state.get("generators")
    if states is None:
        return
    if len(generators) != len(states):
        rank_zero_warn(
            f"The loader and what it holds have {len(generators)} random generators, but the checkpoint has states of"
            f" {len(states)}, so their random numbers start anew. Make the loaders as they were made in the run that is"
            " resumed."
        )
        return
    for generator, each in zip(generators, states, strict=True):
        set_generator_state(generator, each)


def plain_rng(rng: Any) -> dict[str, Any] | None:
    """Return a snapshot of the generators of this process as plain data, whatever form it has."""
    return plain_rng_states(rng) if isinstance(rng, tuple) else rng


def plain_start(start: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what a pass began with as plain data."""
    return None if start is None else {**start, "rng": plain_rng(start["rng"])}


def drop(batches: Iterable[Any], number: int, loader: Any) -> int:
    """Load so many batches and let them go; tell what it costs. Return how many there were."""
    if number <= 0:
        return 0
    if number > 1 and not isinstance(loader, (Sequence, range, torch.Tensor)):
        _warn_cost(loader, number)
    dropped = sum(1 for _ in islice(batches, number))
    if dropped < number:
        warn_shorter(number, dropped)
    return dropped


def _warn_cost(loader: Any, number: int) -> None:
    rank_zero_warn(
        f"To go on where the checkpoint was taken, {number} batches of `{type(loader).__name__}` are loaded again and"
        " dropped, because it cannot tell its position. To save the time, give it, or its iterable dataset if there are"
        " no workers, `state_dict` and `load_state_dict`, or use `torchdata.stateful_dataloader.StatefulDataLoader`."
    )


def warn_shorter(consumed: int, found: int) -> None:
    """Tell that an epoch has fewer batches than were consumed of it."""
    rank_zero_warn(
        f"The checkpoint was written after {consumed} batches of the epoch, but the train dataloader ended after"
        f" {found}, so nothing of this epoch is left. Was it made from the same data?"
    )


def warn_unknown_workers() -> None:
    """Tell that a checkpoint does not say where the workers stood."""
    rank_zero_warn(
        "The random state of the DataLoader's workers is not in the checkpoint, because it could not be kept in shared"
        " memory: the order of the samples goes on exactly, but random numbers drawn in the workers do not. Give the"
        " process more shared memory (`/dev/shm`)."
    )


def _warn_restarted_workers(loader: Any) -> None:
    rank_zero_warn(
        f"`{type(loader).__name__}(persistent_workers=True)` over an iterable dataset is resumed after its first epoch:"
        " random numbers drawn inside of the workers are not those of the uninterrupted run, because nothing tells"
        " where the workers stood. Use `persistent_workers=False` if they have to be exactly the same."
    )
