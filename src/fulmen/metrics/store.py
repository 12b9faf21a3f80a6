"""The values logged in one loop, accumulated over an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.metrics.rules import LogOptions, Settled
from fulmen.utilities.rank_zero import WarningCache
from fulmen.utilities.tree import extract_batch_size

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Entry", "LoggedMetric", "LoggedValue", "MetricStore"]

_warnings = WarningCache()


class LoggedValue:
    """One name logged as a number: its latest value and its running reduction over the epoch."""

    __slots__ = (
        "_dtype",
        "_name",
        "_store",
        "_total",
        "_weight",
        "is_set",
        "keeps_graph",
        "options",
        "settled",
        "value",
    )

    def __init__(self, name: str, options: LogOptions, settled: Settled, store: MetricStore) -> None:
        self.options = options
        self.settled = settled
        self.keeps_graph = options.enable_graph
        self._name = name
        self._store = store
        self._dtype: torch.dtype | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything at the start of an epoch."""
        self.is_set = False
        self.value: Any = None
        self._total: Any = 0.0
        self._weight: float = 0.0

    def add(self, value: Any, batch_size: int | None) -> None:
        """Take one logged value; a CPU scalar becomes a float, on a device it stays a detached tensor."""
        if value.__class__ is not float:
            value = self._taken(value) if isinstance(value, Tensor) else float(value)
        self.value = value
        settled = self.settled
        if settled.on_epoch:
            reduction = settled.reduction
            if reduction == "mean":
                weight = batch_size or self._store.weight()
                self._total = self._total + value * weight
                self._weight += weight
            elif reduction == "sum":
                self._total = self._total + value
            elif not self.is_set:
                self._total = value
            else:
                self._total = _extreme(reduction, self._total, value)
        self.is_set = True

    def _taken(self, value: Tensor) -> Any:
        dtype = value.dtype
        if dtype is not self._dtype:
            self._dtype = self._checked_dtype(dtype)
        if self.keeps_graph:
            return value.to(self._dtype).squeeze()
        if value.is_cpu:
            try:
                return value.item()
            except RuntimeError:
                raise ValueError(
                    f"`self.log({self._name!r}, ...)` got a tensor of shape {tuple(value.shape)}, but logs one number."
                ) from None
        return value.detach().clone().to(self._dtype).squeeze()

    def _checked_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if dtype.is_floating_point:
            return dtype
        default = torch.get_default_dtype()
        _warnings.warn(
            f"You called `self.log({self._name!r}, ...)` with a tensor of {dtype}; it is recorded as {default}."
            " Convert it yourself (`value.float()`) to say that you mean it."
        )
        return default

    def step_tensor(self) -> Any:
        """Return the latest value as a tensor."""
        return self._as_tensor(self.value)

    def epoch_tensor(self) -> Tensor:
        """Return the value reduced over the epoch so far."""
        if self.settled.reduction == "mean":
            return self._as_tensor(self._total / self._weight)
        return self._as_tensor(self._total)

    def _as_tensor(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value
        dtype = self._dtype
        if dtype is None or not dtype.is_floating_point:
            dtype = torch.get_default_dtype()
        if not dtype.itemsize >= 4:  # a half-precision mean of an epoch would lose what was summed exactly
            dtype = torch.float32
        return torch.tensor(value, dtype=dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return the partial epoch, for a checkpoint in the middle of it."""
        # sync: a checkpoint reads
        value = self.value.item() if isinstance(self.value, Tensor) else self.value
        total = self._total.item() if isinstance(self._total, Tensor) else self._total
        return {"value": value, "total": total, "weight": self._weight, "is_set": self.is_set}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a partial epoch."""
        self.value, self._total = state["value"], state["total"]
        self._weight, self.is_set = state["weight"], state["is_set"]


class LoggedMetric:
    """One name logged as a torchmetrics object, which accumulates by itself."""

    __slots__ = ("_metric", "is_set", "options", "settled")

    def __init__(self, metric: Metric, options: LogOptions, settled: Settled) -> None:
        self.options = options
        self.settled = settled
        self._metric = metric
        self.is_set = False

    def reset(self) -> None:
        """Reset the metric at the start of an epoch, if its epoch value was asked for."""
        if self.settled.on_epoch:
            self._metric.reset()
        self.is_set = False

    def add(self, value: Metric, batch_size: int | None) -> None:
        """Note that the metric was updated; its own state holds the values."""
        self._metric = value
        self.is_set = True

    def step_tensor(self) -> Any:
        """Return the value of the last `forward`, or of all updates if it was never called."""
        value = self._metric._forward_cache
        return self.epoch_tensor() if value is None else value

    def epoch_tensor(self) -> Tensor:
        """Return `compute()`."""
        value = self._metric.compute()
        if not isinstance(value, Tensor):
            raise ValueError(
                f"`{type(self._metric).__name__}.compute()` returned a {type(value).__name__}, but `self.log` records"
                " one tensor. Log the parts with `self.log_dict(metric.compute())` at the end of the epoch."
            )
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return that the metric was used; its own state is saved with the module if it is persistent."""
        return {"is_set": self.is_set}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.is_set = state["is_set"]


Entry = LoggedValue | LoggedMetric


class MetricStore:
    """All names logged in one loop, by dataloader and hook.

    The loop writes `batch` and `batch_size` before each batch; `entries` are those of the current dataloader.
    """

    __slots__ = (
        "_waiting",
        "batch",
        "batch_size",
        "by_loader",
        "dataloader_idx",
        "entries",
        "in_batch",
        "is_training",
        "logs_steps",
        "num_dataloaders",
    )

    def __init__(self, *, is_training: bool) -> None:
        self.is_training = is_training
        self.logs_steps = False  # whether anything is logged per step
        self.num_dataloaders = 1
        self.by_loader: dict[int | None, dict[tuple[str, str], Entry]] = {None: {}}
        self._waiting: dict[tuple[int | None, str, str], dict[str, Any]] = {}
        self.entries = self.by_loader[None]
        self.dataloader_idx: int | None = None
        self.in_batch = False
        self.batch: Any = None
        self.batch_size: int | None = 1

    def select(self, dataloader_idx: int | None) -> None:
        """Log under this dataloader from now on; `None` where there is only one, or outside of batches."""
        self.dataloader_idx = dataloader_idx
        self.entries = self.by_loader.setdefault(dataloader_idx, {})

    def leave_batches(self) -> None:
        """Values logged from now on belong to the epoch and count once."""
        self.in_batch, self.batch, self.batch_size = False, None, 1
        self.select(None)

    def weight(self) -> int:
        """Return the number of samples in the current batch, found once per batch."""
        if self.batch_size is None:
            self.batch_size = extract_batch_size(self.batch)
        return self.batch_size

    def reset(self) -> None:
        """Begin a new epoch."""
        self._waiting.clear()
        for _, entry in self._all():
            entry.reset()

    def clear(self) -> None:
        """Forget all names, at the start of a run."""
        self.by_loader = {None: {}}
        self._waiting = {}
        self.logs_steps = False
        self.leave_batches()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the numbers of an unfinished epoch, as plain data."""
        return [
            {"hook": hook, "name": name, "dataloader_idx": dataloader_idx, **entry.state_dict()}
            for dataloader_idx, entries in self.by_loader.items()
            for (hook, name), entry in entries.items()
            if isinstance(entry, LoggedValue)
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Keep the numbers of an unfinished epoch until their names are logged again."""
        self._waiting = {(row["dataloader_idx"], row["hook"], row["name"]): row for row in state}

    def add(self, hook: str, name: str, entry: Entry) -> None:
        """Take a name that is logged for the first time in this run."""
        self.entries[(hook, name)] = entry
        self.logs_steps = self.logs_steps or entry.settled.on_step
        waiting = self._waiting.pop((self.dataloader_idx, hook, name), None)
        if waiting is not None and isinstance(entry, LoggedValue):
            entry.load_state_dict(waiting)

    def names(self) -> set[str]:
        """Return every name that monitoring callbacks could ask for."""
        found = set()
        for _, entry in self._all():
            found |= {entry.settled.plain_name, entry.settled.step_name, entry.settled.epoch_name}
        return found

    def step_entries(self) -> Iterator[Entry]:
        """Yield what was logged per step; in evaluation only for the current dataloader."""
        for entry in self.entries.values():
            if entry.is_set and entry.settled.on_step:
                yield entry

    def epoch_entries(self) -> Iterator[tuple[int | None, Entry]]:
        """Yield what was logged per epoch, with its dataloader."""
        for dataloader_idx, entry in self._all():
            if entry.is_set and entry.settled.on_epoch:
                yield dataloader_idx, entry

    def _all(self) -> Iterator[tuple[int | None, Entry]]:
        for dataloader_idx, entries in self.by_loader.items():
            for entry in entries.values():
                yield dataloader_idx, entry


def _extreme(reduction: str, first: Any, second: Any) -> Any:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        pair = torch.as_tensor(first), torch.as_tensor(second)
        return torch.minimum(*pair) if reduction == "min" else torch.maximum(*pair)
    if first != first or second != second:  # NaN stays NaN, as torch.minimum does
        return float("nan")
    return min(first, second) if reduction == "min" else max(first, second)
