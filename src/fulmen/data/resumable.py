"""One loader whose position can be saved and reached again: `ResumableLoader`.

How the position is reached depends on the loader:

- a DataLoader over a dataset with indices: its sampler passes over what was consumed, nothing is loaded;
- a loader, or the iterable dataset of one, that has `state_dict` and `load_state_dict`: by its own state;
- an iterator of Python, which goes on and on: what was consumed is dropped from a new one;
- anything else: what was consumed is loaded again and dropped, with the random numbers that it was loaded with.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import isgeneratorfunction
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from fulmen.data.combined_loader import shut_down_workers
from fulmen.data.position import is_stateful
from fulmen.data.rng import generator_state, raw_rng_states, set_generator_state, set_raw_rng_states
from fulmen.data.sampler_source import SamplerSource
from fulmen.data.sources import RepeatedSource, Source, StreamSource, generators_inside
from fulmen.data.state_source import StateSource
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["ResumableLoader"]


class ResumableLoader:
    """A loader, the position of whose passes can be saved and reached again, with the same batches to the bit.

    Args:
        loader: Anything that can be iterated.
        is_followed: Positions inside a pass are asked for. Otherwise only what later passes depend on is kept.
        is_read_ahead: The one who iterates fetches a batch before the last one was consumed.

    Attributes:
        loader: The loader.
        num_replayed: Number of batches that were loaded again when a position was reached last.
        has_gone_on: The pass that was opened last goes on inside of one that was loaded.
        num_behind: By how many batches a position may lie behind what was fetched. Read when a pass is opened.

    Example::

        resumable = ResumableLoader(loader)
        batches = resumable.open()
        first = next(batches)
        state = resumable.state_dict(consumed=1)  # loads with `weights_only=True`

        again = ResumableLoader(same_kind_of_loader)
        again.load_state_dict(state)
        second = next(again.open())
    """

    def __init__(self, loader: Any, *, is_followed: bool = True, is_read_ahead: bool = False) -> None:
        self.loader = loader
        self.num_replayed = 0
        self.has_gone_on = False
        self.num_behind = 1 + is_read_ahead
        self._source = _source_for(loader, is_followed, is_read_ahead)
        self._loaded: dict[str, Any] | None = None
        self._is_open = False
        self._generators: list[Any] = []

    @property
    def is_loaded(self) -> bool:
        """Whether a position was loaded and nothing was opened since."""
        return self._loaded is not None

    @property
    def is_going_on(self) -> bool:
        """Whether `open` goes on inside of a pass that was loaded."""
        return self._loaded is not None and not self._loaded["is_over"]

    def open(self) -> Iterator[Any]:
        """Begin a new pass, or go on inside the one that was loaded.

        In the second case, random numbers of this process stay where they are.

        Returns:
            The batches to come.
        """
        self.has_gone_on = self.is_going_on
        loaded, self._loaded = self._loaded, None
        self._is_open = True
        self.num_replayed = 0
        self._source.num_behind = self.num_behind
        self._generators = generators_inside(self.loader) if getattr(self.loader, "num_workers", 0) == 0 else []
        if loaded is None or loaded["is_over"]:
            return self._source.open_new()
        before = raw_rng_states()
        is_same_kind = loaded["kind"] == self._source.kind
        batches = self._source.reopen(loaded) if is_same_kind else self._reopen_by_count(loaded)
        self.num_replayed = self._source.num_replayed
        set_raw_rng_states(before)
        return batches

    def _reopen_by_count(self, loaded: dict[str, Any]) -> Iterator[Any]:
        """Where the loader is not of the kind that the position stems from: pass over so many batches."""
        if loaded["kind"]:
            rank_zero_warn(
                f"The position of `{type(self.loader).__name__}` was saved for another kind of loader, so batches are"
                " only counted: their order is the same only if it does not depend on chance. Resume with loaders made"
                " as in the run that wrote the checkpoint."
            )
        return self._source.reopen_by_count(loaded["consumed"])

    def state_dict(self, consumed: int, *, is_over: bool = False) -> dict[str, Any]:
        """Return the position as plain data, which loads with `weights_only=True`.

        Args:
            consumed: Number of batches of this pass that count as consumed, of those fetched; also those that earlier
                runs consumed. The last two that were fetched may be left out.
            is_over: The pass is over, although there might be more batches; what comes next is a new pass.

        Returns:
            The position, with everything that later passes depend on.
        """
        if self._loaded is not None and (is_over or self._loaded["consumed"] == consumed):
            was_over = self._loaded["is_over"]  # then the number is no more than a count
            return {**self._loaded, "is_over": is_over or was_over, **({"consumed": consumed} if was_over else {})}
        is_over = is_over or not self._is_open
        state = self._source.state_of_next_pass() if is_over else self._source.state_inside(consumed)
        return {"kind": self._source.kind, "consumed": consumed, "is_over": is_over, **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a position; `open` goes there.

        Args:
            state: What `state_dict` returned, for a loader made in the same way. Living workers are ended. Only
                `{"consumed": n}`: so many batches are passed over in a pass whose start is not known.
        """
        shut_down_workers(self.loader)
        self._loaded = {"kind": "", "is_over": False, **state}
        self._is_open = False
        if self._loaded["kind"] == self._source.kind:
            self._source.load(self._loaded)

    def own_states(self) -> list[Any]:
        """Return the states of generators that the dataset holds, if this process loads; empty if there are none."""
        return [generator_state(each) for each in self._generators]

    def set_own_states(self, states: list[Any]) -> None:
        """Put back what `own_states` returned.

        Args:
            states: The states, of a loader made in the same way.
        """
        for generator, each in zip(self._generators, states, strict=False):
            set_generator_state(generator, each)

    def skip_rest(self) -> None:
        """Let the next pass be a new one, also if a position inside of a pass was loaded."""
        if self._loaded is not None and self.is_going_on:
            self._source.skip_rest(self._loaded)
            self._loaded = {**self._loaded, "is_over": True}

    def load_own_state(self, state: Any, consumed: int, *, is_over: bool) -> None:
        """Take over what the loader's own `state_dict` returned, where no more was saved.

        Args:
            state: The state of the loader.
            consumed: Number of batches that count as consumed.
            is_over: The pass is over.
        """
        unknown = dict.fromkeys(("start", "rng_at_first", "workers", "generators"))
        own = {"state": state, "num_to_drop": 0, **unknown}
        self.load_state_dict({"kind": StateSource.kind, "consumed": consumed, "is_over": is_over, **own})


def _source_for(loader: Any, is_followed: bool, is_read_ahead: bool) -> Source:
    dataset = getattr(loader, "dataset", None)
    if is_stateful(loader):
        if isinstance(dataset, IterableDataset) and not is_stateful(dataset) and isgeneratorfunction(dataset.__iter__):
            return RepeatedSource(loader)  # it would do the same, but with other random numbers
        return StateSource(loader, loader, is_followed, is_read_ahead)
    if isinstance(loader, DataLoader):
        if not isinstance(dataset, IterableDataset):
            return SamplerSource(loader, is_followed)
        if is_stateful(dataset) and loader.num_workers == 0:
            return StateSource(loader, dataset, is_followed, is_read_ahead)
    # Only what Python itself makes is known to go on; an own class with `__next__` may well start again in `__iter__`.
    if isinstance(loader, Iterator) and type(loader).__module__ in ("builtins", "itertools"):
        return StreamSource(loader)
    return RepeatedSource(loader)
