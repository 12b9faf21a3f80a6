"""Where the loaders of a training stand inside an epoch, as plain data, so that a later run goes on from there."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch.utils.data import DataLoader

__all__ = ["LoaderPosition", "has_live_workers", "is_stateful", "told_state"]


@dataclass(slots=True)
class LoaderPosition:
    """The position of a pass over loaders.

    Attributes:
        epoch: The epoch that the pass belongs to.
        batches: Number of batches handed to the loop.
        is_ahead: One batch more than that was fetched (loaders without length, to know which batch is the last).
        is_over: The last of those batches was announced as the last of the pass (loaders without length).
        rng_before_ahead: Generators of this process just before the batch ahead was fetched.
        own_before_ahead: For each loader, generators that its dataset holds, at the same moment.
        loaders: The position of each loader; what it is made of is up to `ResumableLoader`.
        rows: How the passes of several loaders lie beside each other; what it is made of is up to `CombinedLoader`.
    """

    epoch: int = 0
    batches: int = 0
    is_ahead: bool = False
    is_over: bool = False
    rng_before_ahead: dict[str, Any] | None = None
    own_before_ahead: list[list[Any]] = field(default_factory=list)
    loaders: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain data."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> LoaderPosition:
        """Return the position that `state_dict` gave; entries of other versions are left out."""
        return cls(**{each.name: state[each.name] for each in fields(cls) if each.name in state})


def is_stateful(loader: Any) -> bool:
    """Return whether a loader can tell and take its own position, as torchdata's `StatefulDataLoader` does."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def has_live_workers(loaders: list[Any]) -> list[bool]:
    """Return for each loader whether it keeps persistent workers that are running now."""
    return [
        isinstance(loader, DataLoader) and loader.persistent_workers and loader._iterator is not None
        for loader in loaders
    ]


def told_state(loader: Any) -> Any:
    """Return what the `state_dict` of a loader returns, without starting workers.

    torchdata's loader starts them if nobody has iterated over it yet, only to say that it stands at its beginning.

    Args:
        loader: A loader or dataset with `state_dict`.

    Returns:
        Its state; empty for the beginning, which torchdata's `load_state_dict` takes as that.
    """
    has_none = isinstance(loader, DataLoader) and loader.num_workers > 0 and loader._iterator is None
    if has_none and hasattr(loader, "next_iter_state"):
        return loader.next_iter_state or {}
    return loader.state_dict()
