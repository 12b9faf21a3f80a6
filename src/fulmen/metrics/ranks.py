"""Logged values over all ranks: what one process would have logged that sees all batches.

Every rank sends what it has, under the names it has: a name that only some ranks log is reduced over those, and nobody
waits for the others. One exchange at the end of an epoch holds all names. Processes that work on one batch together
log the same: they count as one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from fulmen.metrics.objects import metric_at
from fulmen.metrics.rules import Settled
from fulmen.metrics.store import Entry, LoggedMetric, LoggedValue, MetricStore
from fulmen.strategies.strategy import Strategy

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["reduce_epoch", "reduce_steps"]

_Key: TypeAlias = tuple[int | None, str, str]
_Row: TypeAlias = dict[str, Any]


def reduce_epoch(store: MetricStore, strategy: Strategy, module: nn.Module | None) -> None:
    """Give every rank the epoch values of all ranks. All ranks must call it.

    Args:
        store: What this rank has logged; names that only others logged are added.
        strategy: Exchanges objects between ranks.
        module: Holds the metric objects, which synchronize themselves.
    """
    own = [_epoch_row(key, entry) for key, entry in store.items() if entry.is_set and entry.settled.on_epoch]
    rows_by_key, shares = _exchanged(own, strategy)
    for key, rows in rows_by_key.items():  # in the same order on all ranks: metric objects communicate
        _reduce_one(key, rows, shares, store, module)


def _exchanged(own: list[_Row], strategy: Strategy) -> tuple[dict[_Key, dict[int, _Row]], list[int]]:
    """Return the rows by key and data-parallel rank, and which data-parallel rank each process is."""
    rows_by_key: dict[_Key, dict[int, _Row]] = {}
    gathered = strategy.gather_objects((strategy.data_parallel_rank, own))
    for share, rows in gathered:
        for row in rows:
            rows_by_key.setdefault(tuple(row["key"]), {}).setdefault(share, row)
    return rows_by_key, [share for share, _ in gathered]


def _epoch_row(key: _Key, entry: Entry) -> _Row:
    return {"key": key, "settled": asdict(entry.settled), **entry.epoch_part()}


def _reduce_one(
    key: _Key, rows: dict[int, _Row], shares: list[int], store: MetricStore, module: nn.Module | None
) -> None:
    first = next(iter(rows.values()))
    entry = store.get(key)
    if "metric" in first:
        metric = None if module is None else metric_at(module, first["metric"] or "")
        if isinstance(entry, LoggedMetric):
            metric = entry.metric
        if metric is None:
            return
        if entry is None:
            entry = LoggedMetric(metric, None, Settled(**first["settled"]), first["metric"])
            store.add_at(key, entry)
        with _no_warning_without_update(metric):
            entry.synced = entry.computed()  # type: ignore[union-attr]  # a metric object, as its row says
        return
    if entry is None:
        entry = LoggedValue(key[2], None, Settled(**first["settled"]), store)
        store.add_at(key, entry)
    if not isinstance(entry, LoggedValue):
        return
    chosen = _of_group(entry, rows, shares)
    if chosen:
        entry.synced = torch.tensor(_reduced(entry.settled.reduction, chosen), dtype=getattr(torch, first["dtype"]))


def _of_group(entry: LoggedValue, rows: dict[int, _Row], shares: list[int]) -> list[_Row]:
    """The rows of the ranks that `sync_dist_group` names; without one, of all."""
    group = entry.options.sync_dist_group if entry.options is not None else None
    if group is None:
        return list(rows.values())
    members = {shares[rank] for rank in torch.distributed.get_process_group_ranks(group)}
    return [row for share, row in rows.items() if share in members]


def _reduced(reduction: str, rows: list[_Row]) -> float:
    totals = [row["total"] for row in rows]
    if reduction == "mean":
        weight = sum(row["weight"] for row in rows)
        return sum(totals) / weight if weight else math.nan
    if reduction == "sum":
        return float(sum(totals))
    if any(total != total for total in totals):
        return math.nan
    return float(min(totals) if reduction == "min" else max(totals))


@contextmanager
def _no_warning_without_update(metric: Metric) -> Iterator[None]:
    """A rank without batches has nothing to update with, and takes part all the same."""
    with warnings.catch_warnings():
        if not metric.update_called:
            warnings.simplefilter("ignore")
        yield


def reduce_steps(store: MetricStore, strategy: Strategy, *, monitored: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Reduce the latest values that were logged with `sync_dist=True` over ranks. All ranks must call it.

    Args:
        store: What this rank has logged; its step values are replaced.
        strategy: Exchanges objects between ranks.
        monitored: Names that are reduced however they were logged.

    Returns:
        Values that only other ranks have logged.
    """
    own = {
        key: entry
        for key, entry in store.items()
        if isinstance(entry, LoggedValue) and entry.is_set and entry.settled.on_step and _is_wanted(entry, monitored)
    }
    if strategy.agree([len(own)], op="max") == [0]:
        return {}
    weight = store.batch_size or 1
    others: dict[str, torch.Tensor] = {}
    rows_by_key, shares = _exchanged([_step_row(key, own[key], weight) for key in own], strategy)
    for key, by_rank in rows_by_key.items():
        entry = own.get(key)
        if entry is not None:
            entry.value, entry.is_shared = _reduced(entry.settled.reduction, _of_group(entry, by_rank, shares)), True
            continue
        row = next(iter(by_rank.values()))
        value = torch.tensor(_reduced(row["reduction"], list(by_rank.values())))
        others.update(dict.fromkeys(row["names"], value))
    return others


def _is_wanted(entry: LoggedValue, monitored: Collection[str]) -> bool:
    if entry.keeps_graph or entry.is_shared:  # a sum would be taken twice
        return False
    asked = entry.options is not None and entry.options.sync_dist
    return asked or entry.settled.step_name in monitored or entry.settled.plain_name in monitored


def _step_row(key: _Key, entry: LoggedValue, weight: int) -> _Row:
    settled = entry.settled
    value = float(entry.value) * (weight if settled.reduction == "mean" else 1)  # sync: other ranks read
    names = (settled.step_name, settled.plain_name)
    return {"key": key, "total": value, "weight": weight, "reduction": settled.reduction, "names": names}
