"""What `Fabric.save` and `Fabric.load` do before they ask the strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from fulmen.data.position import is_stateful
from fulmen.fabric.loaders import _FabricDataLoader
from fulmen.fabric.wrappers import unwrapped
from fulmen.utilities.rank_streams import with_streams_of_new_rank
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.types import Stateful

if TYPE_CHECKING:
    from fulmen.strategies.strategy import Strategy
    from fulmen.utilities.types import _PATH

__all__ = ["load", "load_raw", "save"]

_OWN_KEY = "fulmen"


def save(
    strategy: Strategy,
    path: _PATH,
    state: dict[str, Any],
    filter: Mapping[str, Callable[[str, Any], bool]] | None,
) -> None:
    """Save a state; see `Fabric.save`."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"`Fabric.save` got a `{type(state).__name__}` as the state, but entries need names. Pass a dictionary:"
            " {'model': model, 'optimizer': optimizer}."
        )
    _check_filter(filter, state)
    objects = _saved_as(strategy, state)
    strategy.save_state(path, objects, filter=_useful(filter or {}, objects))


def _useful(filter: Mapping[str, Callable[[str, Any], bool]], objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return the filters of entries that have something to filter."""
    plain = [name for name in filter if not isinstance(objects[name], (Mapping, nn.Module, Stateful))]
    if plain:
        rank_zero_warn(
            f"`Fabric.save(filter=...)` has filters for {plain}, which have no entries to choose from; they are saved"
            " whole. Remove these filters.",
            stacklevel=6,
        )
    return {name: keep for name, keep in filter.items() if name not in plain}


def _check_filter(filter: Any, state: Mapping[str, Any]) -> None:
    if filter is None:
        return
    if not isinstance(filter, Mapping):
        raise TypeError(
            f"`Fabric.save(filter={filter!r})`: there is one filter for each name. Pass a dictionary:"
            " {'model': lambda key, value: ...}."
        )
    if unknown := sorted(filter.keys() - state.keys()):
        raise ValueError(
            f"`Fabric.save(filter=...)` has the names {unknown}, which the state has not: {sorted(state)}."
            " Use the same names in both."
        )
    for name, keep in filter.items():
        if not callable(keep):
            raise TypeError(
                f"Expected `Fabric.save(filter=...)` for key {name!r} to be a callable, given {keep!r}."
                " Pass a function of key and value that returns whether to save the entry."
            )


def load(
    strategy: Strategy, path: _PATH, state: dict[str, Any] | None, strict: bool, weights_only: bool | None
) -> dict[str, Any]:
    """Load a state; see `Fabric.load`."""
    if state is not None and not isinstance(state, Mapping):
        raise TypeError(
            f"`Fabric.load` got a `{type(state).__name__}` as the state, but entries need names. Pass a dictionary,"
            " {'model': model}; for a file that holds one `state_dict` and nothing else, call `fabric.load_raw`."
        )
    objects = None if state is None else _saved_as(strategy, state)
    given = dict(objects or {})
    rest = strategy.load_state(path, objects, strict=strict, weights_only=weights_only)
    for name, value in (objects or {}).items():
        if state is not None and value is not given[name]:  # a plain value, replaced
            state[name] = value
    return rest


def load_raw(strategy: Strategy, path: _PATH, obj: Any, strict: bool, weights_only: bool | None) -> None:
    """Load one `state_dict`; see `Fabric.load_raw`."""
    content = strategy.load_checkpoint(path, weights_only=weights_only)
    target = unwrapped(obj)
    if isinstance(target, nn.Module):
        strategy.load_module_state_dict(target, content, strict=strict)
    elif isinstance(target, Optimizer):
        strategy.load_optimizer_state(target, content)
    else:
        target.load_state_dict(content)


# ---- loaders


def _saved_as(strategy: Strategy, state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _LoaderOfAllRanks(strategy, value) if isinstance(value, _FabricDataLoader) else unwrapped(value)
        for name, value in state.items()
    }


class _LoaderOfAllRanks:
    """A prepared loader as it is saved: with the position and the random state of each data-parallel rank."""

    def __init__(self, strategy: Strategy, loader: _FabricDataLoader) -> None:
        self._strategy = strategy
        self._loader = loader

    def state_dict(self) -> dict[str, Any]:
        """Collect the positions; all ranks must call it."""
        inner = self._loader.dataloader
        own = inner.state_dict() if is_stateful(inner) else {}  # what a program without fulmen can use
        return {**own, _OWN_KEY: {"ranks": self._strategy.gather_shares(self._loader.position_state())}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give this rank its position."""
        if _OWN_KEY not in state:
            self._loader.load_own_state(state)
            return
        by_rank = state[_OWN_KEY]["ranks"]
        rank = self._strategy.data_parallel_rank
        own = by_rank[rank] if rank < len(by_rank) else with_streams_of_new_rank(by_rank, rank)
        self._loader.load_position_state(own)
