"""One loader made of several: `CombinedLoader`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from math import inf
from typing import Any

from torch.utils.data import DataLoader

from fulmen.data.nesting import take_apart
from fulmen.data.worker_watch import open_watched
from fulmen.utilities.data import sized_len
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["CombinedLoader", "Rows", "length_of", "shut_down_workers"]

_END = object()


@dataclass(slots=True)
class Rows:
    """How the passes of several loaders lie beside each other: batches that come together are a row.

    Attributes:
        open: Opens the loader with this index, for the first time or again, to give its next batch in this row.
        num_loaders: Number of loaders.
        row: Index of the row that comes next.
        first_rows: For each loader, the row at which its current pass began.
        has_ended: For each loader, whether it ended and was started again (`"max_size_cycle"`).
        ended_at: For each loader, the row that it had no batch for (`"max_size"`); `None` while it goes on.
        is_exhausted: For each loader, whether its current pass has no batch left, so that it is not opened for it.
    """

    open: Callable[[int, int], Iterator[Any]]
    num_loaders: int
    row: int = 0
    first_rows: list[int] = field(default_factory=list)
    has_ended: list[bool] = field(default_factory=list)
    ended_at: list[int | None] = field(default_factory=list)
    is_exhausted: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Fill in what a new pass begins with."""
        self.first_rows = self.first_rows or [0] * self.num_loaders
        self.has_ended = self.has_ended or [False] * self.num_loaders
        self.ended_at = self.ended_at or [None] * self.num_loaders
        self.is_exhausted = self.is_exhausted or [False] * self.num_loaders

    def open_all(self) -> list[Iterator[Any]]:
        """Open all loaders but those that have nothing to give."""
        return [
            iter(()) if is_exhausted else self.open(i, self.row) for i, is_exhausted in enumerate(self.is_exhausted)
        ]


class CombinedLoader(Iterable[tuple[Any, int, int]]):
    """Iterate over several loaders as one.

    Iterating yields `(batch, batch_idx, dataloader_idx)`. The batch has the structure of `iterables`, except in the
    mode `"sequential"`, where it is the batch of one loader.

    Args:
        iterables: A loader, or nested dicts, lists, tuples and dataclasses of loaders. A loader is anything that can
            be iterated.
        mode: What to do about different lengths.

            - `"min_size"`: stop with the shortest.
            - `"max_size"`: stop with the longest; `None` stands for the batch of one that ended before.
            - `"max_size_cycle"`: stop with the longest; those that end before start again.
            - `"sequential"`: one loader after the other, `batch_idx` starts at 0 for each.

    Attributes:
        mode: The mode.
        is_single: There is one loader and it is not inside a collection.

    Raises:
        ValueError: The mode is unknown.

    Example::

        combined = CombinedLoader({"a": range(6), "b": range(3)}, mode="max_size_cycle")
        for batch, batch_idx, dataloader_idx in combined:
            print(batch)  # {"a": 3, "b": 0} as the fourth
    """

    def __init__(self, iterables: Any, mode: str = "min_size") -> None:
        if mode not in _TOTALS:
            raise ValueError(
                f"`CombinedLoader(mode={mode!r})` is not supported, because it does not say how loaders of different"
                f" length go together. Choose one of {sorted(_TOTALS)}."
            )
        self.mode = mode
        self._flattened, self._nesting = take_apart(iterables)
        self._limits: list[int | float] | None = None
        self._iterator: Iterator[tuple[Any, int, int]] | None = None
        self.is_single = self._nesting is None

    @property
    def iterables(self) -> Any:
        """The loaders in their structure."""
        return self._nest(self._flattened)

    @property
    def flattened(self) -> list[Any]:
        """The loaders as a list. May be set to a list of the same length."""
        return self._flattened

    @flattened.setter
    def flattened(self, loaders: list[Any]) -> None:
        if len(loaders) != len(self._flattened):
            raise ValueError(
                f"Mismatch in flattened length ({len(loaders)}) and existing length ({len(self._flattened)}):"
                " each loader needs exactly one replacement. Make a new `CombinedLoader` for other loaders."
            )
        self._flattened = list(loaders)

    @property
    def limits(self) -> list[int | float] | None:
        """The most batches that are taken from each loader. May be set to one number for all, a list, or `None`.

        In the mode `"max_size_cycle"` a loader that reached its limit starts again as if it had ended.
        """
        return self._limits

    @limits.setter
    def limits(self, limits: int | float | list[int | float] | None) -> None:
        if isinstance(limits, (int, float)):
            limits = [limits] * len(self._flattened)
        if limits is not None and len(limits) != len(self._flattened):
            raise ValueError(
                f"Mismatch in number of limits ({len(limits)}) and number of iterables ({len(self._flattened)}):"
                " each loader needs one limit. Pass one number for all, or a list with one for each."
            )
        self._limits = limits

    @property
    def sampler(self) -> Any:
        """The sampler of each loader, in the structure of the loaders; `None` for those without."""
        return self._nest([getattr(loader, "sampler", None) for loader in self._flattened])

    @property
    def batch_sampler(self) -> Any:
        """The batch sampler of each loader, in the structure of the loaders; `None` for those without."""
        return self._nest([getattr(loader, "batch_sampler", None) for loader in self._flattened])

    def _nest(self, values: list[Any]) -> Any:
        return values[0] if self._nesting is None else self._nesting.build(values)

    # ---- length

    def lengths(self) -> list[int | float]:
        """The number of batches that each loader gives at most, `inf` where it is unknown."""
        limits = self._limits or [inf] * len(self._flattened)
        return [min(length_of(loader), limit) for loader, limit in zip(self._flattened, limits, strict=True)]

    def total_batches(self) -> int | float:
        """The number of batches of one pass, `inf` if a loader that decides about it has no length."""
        return _TOTALS[self.mode](self.lengths())

    def __len__(self) -> int:
        """The number of batches of one pass.

        Raises:
            RuntimeError: `iter()` was not called before.
            TypeError: The number is not known.
        """
        if self._iterator is None:
            raise RuntimeError(
                "The length of a `CombinedLoader` is known when its loaders were opened."
                " Please call `iter(combined_loader)` first."
            )
        return self.total_batches()  # type: ignore[return-value]  # inf makes Python raise the TypeError

    # ---- iteration

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        """Open the loaders and return an iterator of `(batch, batch_idx, dataloader_idx)`."""
        self._iterator = self.opened(self._limits or [inf] * len(self._flattened))
        return self._iterator

    def __next__(self) -> tuple[Any, int, int]:
        """The next item of the iterator that `iter()` made last.

        Raises:
            RuntimeError: `iter()` was not called before.
        """
        if self._iterator is None:
            raise RuntimeError(
                "A `CombinedLoader` has nothing to go on with. Please call `iter(combined_loader)` first."
            )
        return next(self._iterator)

    def opened(self, limits: list[int | float], *, going_on: Rows | None = None) -> Iterator[tuple[Any, int, int]]:
        """Return an independent iterator of `(batch, batch_idx, dataloader_idx)` with limits of its own.

        Args:
            limits: The most batches that are taken from each loader.
            going_on: Where the loaders stand, and how to open them; default: at the start, by `iter()`. It is kept up
                to date. Not for the mode `"sequential"`.
        """
        if self.mode == "sequential":
            return _one_after_the_other(self._flattened, limits)
        rows = going_on or Rows(partial(self._open, limits), len(self._flattened))
        iterators = rows.open_all()
        if self.mode == "min_size":
            return self._numbered(zip(*iterators))  # noqa: B905 - ends with the shortest
        if self.mode == "max_size":
            return self._numbered(_longest(iterators, rows))
        most = max(limits)  # all loaders have ended by then: do not start those that ended before once more
        cycled = _cycled(self._flattened, iterators, rows)
        return self._numbered(cycled if most == inf else islice(cycled, max(0, int(most) - rows.row)))

    def _open(self, limits: list[int | float], index: int, row: int) -> Iterator[Any]:
        return _start(self._flattened[index], limits[index])

    def _numbered(self, rows: Iterable[Any]) -> Iterator[tuple[Any, int, int]]:
        if self._nesting is None:
            for batch_idx, row in enumerate(rows):
                yield row[0], batch_idx, 0
            return
        build = self._nesting.build
        for batch_idx, row in enumerate(rows):
            yield build(row), batch_idx, 0

    def reset(self) -> None:
        """End the iteration and shut down the workers of all loaders, also persistent ones."""
        if self._iterator is not None:
            self._iterator.close()  # type: ignore[attr-defined]  # all iterators here are generators
            self._iterator = None
        for loader in self._flattened:
            shut_down_workers(loader)


def length_of(loader: Any) -> int | float:
    """Return the number of batches of a loader, `inf` if it does not know it.

    Args:
        loader: Anything that can be iterated.
    """
    length = sized_len(loader)
    return inf if length is None else length


def shut_down_workers(loader: Any) -> None:
    """End the worker processes that a `DataLoader(persistent_workers=True)` keeps.

    Args:
        loader: Any loader; one that keeps no workers stays as it is.
    """
    iterator = getattr(loader, "_iterator", None) if isinstance(loader, DataLoader) else None
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()  # torch has no public way
        loader._iterator = None


def _start(loader: Any, limit: int | float) -> Iterator[Any]:
    """An iterator that ends at the limit without asking the loader for one batch more."""
    if limit == inf:
        return open_watched(loader)
    return islice(open_watched(loader), int(limit)) if limit > 0 else iter(())


def _one_after_the_other(loaders: list[Any], limits: list[int | float]) -> Iterator[tuple[Any, int, int]]:
    for dataloader_idx, (loader, limit) in enumerate(zip(loaders, limits, strict=True)):
        for batch_idx, batch in enumerate(_start(loader, limit)):
            yield batch, batch_idx, dataloader_idx


def _longest(iterators: list[Iterator[Any]], rows: Rows) -> Iterator[list[Any]]:
    """Rows of batches until every loader ended; `None` stands for the batch of one that ended before."""
    ended_at = rows.ended_at
    while True:
        row = []
        for i, iterator in enumerate(iterators):
            batch = _END if ended_at[i] is not None else next(iterator, _END)
            if batch is _END and ended_at[i] is None:
                ended_at[i] = rows.row
            row.append(None if batch is _END else batch)
        if None not in ended_at:
            return
        rows.row += 1
        yield row


def _cycled(loaders: list[Any], iterators: list[Iterator[Any]], rows: Rows) -> Iterator[list[Any]]:
    """Rows of batches until every loader ended at least once; loaders that end before are started again."""
    while True:
        row = []
        for i, loader in enumerate(loaders):
            batch = next(iterators[i], _END)
            if batch is _END:
                if all(ended or j == i for j, ended in enumerate(rows.has_ended)):
                    return
                iterators[i] = iter(())  # lets go of the old workers before there are new ones
                iterators[i] = rows.open(i, rows.row)
                rows.first_rows[i], rows.has_ended[i] = rows.row, True
                batch = next(iterators[i], _END)
            if batch is _END:
                _warn_cannot_start_again(i, loader)
                return
            row.append(batch)
        rows.row += 1
        yield row


def _warn_cannot_start_again(index: int, loader: Any) -> None:
    rank_zero_warn(
        f"Loader {index} of the `CombinedLoader`, {type(loader).__name__!r}, gave no batch when it was started again,"
        ' so `mode="max_size_cycle"` ends before its longest loader does. It is empty, or an iterator that can be used'
        ' only once: pass something with more than one pass, or use `mode="max_size"`.'
    )


_TOTALS: dict[str, Callable[[list[int | float]], int | float]] = {
    "min_size": min,
    "max_size": max,
    "max_size_cycle": max,
    "sequential": sum,
}
