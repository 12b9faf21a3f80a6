"""Metrics of an unfinished epoch for another number of ranks than have logged them.

Epoch values are reduced over ranks when the epoch ends, so it does not matter which rank holds which part of them: of
more old ranks than new ones, new rank r of W takes over what the old ranks r, r + W, r + 2 W ... had. Ranks that there
were not before begin with nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from fulmen.metrics.objects import metric_at
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["redivide_metric_states", "redivide_rows"]

_Row: TypeAlias = dict[str, Any]
_State: TypeAlias = Tensor | list[Tensor]


def redivide_rows(by_rank: Sequence[list[_Row]], *, rank: int, world_size: int) -> list[_Row]:
    """Return what one of the new ranks goes on with of what the old ranks have logged.

    Args:
        by_rank: What `MetricStore.state_dict` returned on each old rank.
        rank: The new rank.
        world_size: Number of new ranks.
    """
    merged: dict[tuple[Any, ...], _Row] = {}
    for rows in by_rank[rank::world_size]:
        for row in rows:
            key = row["dataloader_idx"], row["hook"], row["name"]
            merged[key] = _merged(merged[key], row) if key in merged else row
    return list(merged.values())


def _merged(first: _Row, second: _Row) -> _Row:
    """Add up two parts of an epoch; the latest value stays that of the first, as each rank has its own."""
    if "total" not in first or "total" not in second or not first["settled"]["on_epoch"]:
        return first
    totals, reduction = (first["total"], second["total"]), first["settled"]["reduction"]
    weight = first["weight"] + second["weight"]
    if reduction in ("mean", "sum"):
        return {**first, "total": totals[0] + totals[1], "weight": weight}
    if any(math.isnan(each) for each in totals):
        return {**first, "total": math.nan}
    return {**first, "total": min(totals) if reduction == "min" else max(totals)}


# ---- torchmetrics objects


def redivide_metric_states(
    module: nn.Module, by_rank: Sequence[dict[str, dict[str, Any]]], *, rank: int, world_size: int
) -> dict[str, dict[str, Any]]:
    """Return what the metric objects of one of the new ranks go on with.

    States are merged as the metric itself would reduce them over ranks, by their `dist_reduce_fx`.

    Args:
        module: Holds the metrics, at the same paths as when the states were taken.
        by_rank: What `metric_states` returned on each old rank.
        rank: The new rank.
        world_size: Number of new ranks.

    Returns:
        As `metric_states`, on the CPU; metrics that the module no longer has are left out.
    """
    redivided = {}
    for path in dict.fromkeys(path for states in by_rank for path in states):
        metric = metric_at(module, path)
        if metric is None:
            continue
        unused = {"updates": 0, "states": {name: _copied(default) for name, default in metric._defaults.items()}}
        everywhere = [states.get(path, unused) for states in by_rank]
        mine = [each for each in everywhere[rank::world_size] if each["updates"]]
        if len(mine) > 1 and (stacked := _states_without_reduction(metric)):
            _warn_cannot_merge(metric, path, stacked[0], len(by_rank))
            mine = mine[:1]
        states = {name: _state(metric, name, mine, everywhere) for name in metric._defaults}
        updates = max((each["updates"] for each in mine), default=0)
        redivided[path] = {"updates": updates, "states": states}
    return redivided


def _states_without_reduction(metric: Metric) -> list[str]:
    """The tensors that a metric only puts side by side: several cannot become one. Lists can."""
    return [
        name
        for name, reduce in metric._reductions.items()
        if reduce is None and not isinstance(metric._defaults[name], list)
    ]


def _state(metric: Metric, name: str, mine: list[_Row], everywhere: list[_Row]) -> _State:
    """One state of a metric on a new rank, from what the old ranks had that it takes over."""
    reduce = metric._reductions[name]
    kind = getattr(reduce, "__name__", "")
    if kind == "dim_zero_mean":  # the mean over ranks stays the same if each of them has it
        mine = everywhere
    states = [_copied(each["states"][name]) for each in mine]
    if not states:
        return _copied(metric._defaults[name])
    if len(states) == 1:
        return states[0]
    if isinstance(metric._defaults[name], list):
        return [item for state in states for item in (state if isinstance(state, list) else [state])]
    tensors = [state for state in states if isinstance(state, Tensor)]
    if kind == "dim_zero_cat":
        return torch.cat([state.reshape(-1) if state.ndim == 0 else state for state in tensors])
    return reduce(torch.stack(tensors))  # type: ignore[no-any-return,operator,misc]  # torchmetrics takes any callable


def _copied(state: _State) -> _State:
    if isinstance(state, list):
        return [item.detach().to("cpu", copy=True) for item in state]
    return state.detach().to("cpu", copy=True)


def _warn_cannot_merge(metric: Metric, path: str, name: str, num_ranks: int) -> None:
    rank_zero_warn(
        f"The metric `{type(metric).__name__}` at {path!r} was interrupted within an epoch on {num_ranks} ranks, and"
        f" fewer go on. Its state {name!r} has no `dist_reduce_fx`, so those of several ranks cannot become one: the"
        " value of this epoch leaves out what some ranks had seen. Later epochs are not affected. Resume with as many"
        " processes as before if it counts."
    )
