"""The torchmetrics objects of a module: where they are, and what they hold in the middle of an epoch.

Nothing here imports torchmetrics: a module has none of its objects before somebody else did.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = [
    "is_torchmetric",
    "load_metric_states",
    "local_value",
    "metric_at",
    "metric_states",
    "path_of",
    "synchronize_over",
]

_group: Any = None  # the data-parallel group of the run of this process; not in the metrics, which are copied and saved


def is_torchmetric(value: object) -> bool:
    """Tell whether `value` is a torchmetrics `Metric`."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def path_of(module: nn.Module, metric: object) -> str | None:
    """Return where below `module` a metric is, e.g. `"scores.accuracy"`; `None` if it is not there."""
    return next((path for path, child in module.named_modules() if child is metric), None)


def metric_at(module: nn.Module, path: str) -> Metric | None:
    """Return the metric at a path that `path_of` gave; `None` if there is none now."""
    found = dict(module.named_modules()).get(path)
    return found if is_torchmetric(found) else None


def local_value(metric: Metric) -> Any:
    """Return `compute()` of what this rank has seen, without asking the others."""
    synchronizes, metric._to_sync = metric._to_sync, False
    try:
        return metric.compute()
    finally:
        if synchronizes:
            metric._to_sync, metric._computed = True, None


def synchronize_over(module: nn.Module | None, group: Any) -> None:
    """Let the metrics of a module, when they synchronize, count processes that work on one batch together once.

    Metrics with a `process_group` or a `dist_sync_fn` of their own keep it.

    Args:
        module: The module that holds them; `None` if there is none.
        group: The processes that have, together, each share of the data once; `None` for all processes.
    """
    global _group
    _group = group
    for _, metric in () if module is None else _metrics(module):
        if group is None and metric.dist_sync_fn is _gathered_from_group:
            metric.dist_sync_fn = None
        elif group is not None and metric.process_group is None and metric.dist_sync_fn is None:
            metric.dist_sync_fn = _gathered_from_group


def _gathered_from_group(state: Tensor, group: Any | None = None) -> list[Tensor]:
    gather = sys.modules["torchmetrics.utilities.distributed"].gather_all_tensors  # loaded: there is a metric
    return gather(state, _group if group is None else group)  # type: ignore[no-any-return]  # a list, by rank


def metric_states(
    module: nn.Module, *, without: Collection[str] = (), with_unused: bool = False
) -> dict[str, dict[str, Any]]:
    """Return what the metrics of a module have accumulated, as tensors and numbers.

    Args:
        module: The module that holds them.
        without: Paths of metrics to leave out.
        with_unused: Include metrics that were not updated.

    Returns:
        For the path of each metric that was updated, the number of its updates and its states.
    """
    return {
        path: {
            "updates": metric._update_count,
            "states": {name: _detached(getattr(metric, name)) for name in metric._defaults},
        }
        for path, metric in _metrics(module)
        if (metric._update_count or with_unused) and path not in without
    }


def load_metric_states(module: nn.Module, states: dict[str, dict[str, Any]]) -> None:
    """Give the metrics of a module back what `metric_states` returned; they may be on another device now."""
    metrics = dict(_metrics(module))
    for path, saved in states.items():
        metric = metrics.get(path)
        if metric is None:
            continue  # the module no longer has it
        for name, state in saved["states"].items():
            setattr(metric, name, _moved(state, metric.device))
        metric._update_count = saved["updates"]
        metric._computed = None


def _metrics(module: nn.Module) -> Iterator[tuple[str, Metric]]:
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return
    for path, child in module.named_modules():
        if isinstance(child, torchmetrics.MetricCollection):
            for _ in child.values(copy_state=False):  # the metrics of a compute group get the state of its first
                pass
        elif isinstance(child, torchmetrics.Metric):
            yield path, child


def _detached(state: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [item.detach().clone() for item in state] if isinstance(state, list) else state.detach().clone()


def _moved(state: Tensor | list[Tensor], device: Any) -> Tensor | list[Tensor]:
    return [item.to(device) for item in state] if isinstance(state, list) else state.to(device)
