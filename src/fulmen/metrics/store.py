"""The values logged in one loop, accumulated over an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fulmen.metrics.objects import local_value, metric_at
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
        "_seen_dtype",
        "_store",
        "_total",
        "_weight",
        "is_set",
        "is_shared",
        "keeps_graph",
        "options",
        "settled",
        "synced",
        "value",
    )

    def __init__(self, name: str, options: LogOptions | None, settled: Settled, store: MetricStore) -> None:
        self.options = options  # None: restored from a checkpoint, not logged since
        self.settled = settled
        self.keeps_graph = options is not None and options.enable_graph
        self._name = name
        self._store = store
        self._seen_dtype: torch.dtype | None = None  # of the tensors that were logged
        self._dtype: torch.dtype = torch.get_default_dtype()  # of those that are shown
        self.reset()

    def reset(self) -> None:
        """Forget everything at the end of an epoch."""
        self.is_set = False
        self.is_shared = False  # whether `value` is already that of all ranks
        self.synced: Tensor | None = None  # the epoch value over all ranks, once they have exchanged theirs
        self.value: Any = None
        self._total: Any = 0.0
        self._weight: float = 0.0

    def add(self, value: Any, batch_size: int | None) -> None:
        """Take one logged value; a CPU scalar becomes a float, on a device it stays a detached tensor."""
        if value.__class__ is not float:
            value = self._taken(value) if isinstance(value, Tensor) else float(value)
        self.value = value
        self.synced, self.is_shared = None, False
        settled = self.settled
        if settled.on_epoch:
            reduction = settled.reduction
            if reduction == "mean":
                if batch_size is None:
                    store = self._store
                    batch_size = store.batch_size or store.weight()
                self._total = self._total + value * batch_size
                self._weight += batch_size
            elif reduction == "sum":
                self._total = self._total + value
            elif not self.is_set:
                self._total = value
            else:
                self._total = _extreme(reduction, self._total, value)
        self.is_set = True

    def _taken(self, value: Tensor) -> Any:
        if value.__class__ is not Tensor and (full_tensor := getattr(value, "full_tensor", None)) is not None:
            value = full_tensor()  # of one that is divided among ranks
        dtype = value.dtype
        if dtype is not self._seen_dtype:
            self._see_dtype(dtype)
        if self.keeps_graph:
            return value.to(self._dtype).squeeze()
        if value.is_cpu:
            try:
                return value.item()
            except RuntimeError:
                raise ValueError(
                    f"`self.log({self._name!r}, ...)` got a tensor of shape {tuple(value.shape)}, but logs one number."
                    " Reduce it first, e.g. `value.mean()`."
                ) from None
        return value.detach().to(self._dtype, copy=True).squeeze()

    def _see_dtype(self, dtype: torch.dtype) -> None:
        self._seen_dtype = dtype
        if dtype.is_floating_point:
            # half precision would lose in an epoch's mean what was summed
            self._dtype = dtype if dtype.itemsize >= 4 else torch.float32
            return
        self._dtype = torch.get_default_dtype()
        _warnings.warn(
            f"You called `self.log({self._name!r}, ...)` with a tensor of {dtype}; it is recorded as {self._dtype}."
            " Convert it yourself (`value.float()`) to say that you mean it."
        )

    def step_tensor(self) -> Any:
        """Return the latest value as a tensor."""
        return self._as_tensor(self.value)

    def epoch_tensor(self) -> Tensor:
        """Return the value reduced over the epoch so far; over all ranks, once they have exchanged theirs."""
        if self.synced is not None:
            return self.synced
        if self.settled.reduction == "mean":
            return self._as_tensor(self._total / self._weight if self._weight else math.nan)
        return self._as_tensor(self._total)

    def epoch_part(self) -> dict[str, Any]:
        """Return what this rank contributes to the epoch value."""
        total = self._total.item() if isinstance(self._total, Tensor) else self._total  # sync: other ranks read
        return {"total": total, "weight": self._weight, "dtype": str(self._dtype).removeprefix("torch.")}

    def _as_tensor(self, value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else torch.tensor(value, dtype=self._dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return the partial epoch, for a checkpoint in the middle of it."""
        # sync: a checkpoint reads
        value = self.value.item() if isinstance(self.value, Tensor) else self.value
        total = self._total.item() if isinstance(self._total, Tensor) else self._total
        return {"value": value, "total": total, "weight": self._weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a partial epoch."""
        self.value, self._total, self._weight = state["value"], state["total"], state["weight"]
        self.is_set = True


class LoggedMetric:
    """One name logged as a torchmetrics object, which accumulates by itself."""

    __slots__ = ("is_set", "metric", "options", "path", "settled", "synced")

    def __init__(self, metric: Metric, options: LogOptions | None, settled: Settled, path: str | None) -> None:
        self.options = options  # None: restored from a checkpoint, not logged since
        self.settled = settled
        self.path = path  # below the module that runs; None if it is elsewhere
        self.metric = metric
        self.is_set = False
        self.synced: Tensor | None = None  # the value over all ranks, once they have computed it together

    def reset(self) -> None:
        """Reset the metric at the end of an epoch."""
        if self.is_set or self.synced is not None:
            self.metric.reset()
        self.is_set, self.synced = False, None

    def add(self, value: Metric, batch_size: int | None) -> None:
        """Note that the metric was updated; its own state holds the values."""
        self.metric = value
        self.is_set, self.synced = True, None

    def step_tensor(self) -> Any:
        """Return the value of the last `forward`, or of all updates if it was never called."""
        value = self.metric._forward_cache
        return local_value(self.metric) if value is None else value

    def epoch_tensor(self) -> Tensor:
        """Return `compute()`; on several ranks what they have computed together, if they have."""
        return self.computed() if self.synced is None else self.synced

    def epoch_part(self) -> dict[str, Any]:
        """Return which metric it is; what it holds goes over ranks by itself."""
        return {"metric": self.path}

    def computed(self) -> Tensor:
        """Return `compute()`, in which the metric synchronizes itself: all ranks must call it."""
        value = self.metric.compute()
        if not isinstance(value, Tensor):
            raise ValueError(
                f"`{type(self.metric).__name__}.compute()` returned a {type(value).__name__}, but `self.log` records"
                " one tensor. Log the parts with `self.log_dict(metric.compute())` at the end of the epoch."
            )
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return which metric was logged; what it holds is saved for all metrics of the module together."""
        return {"metric": self.path}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Note that the metric was logged in the epoch that goes on."""
        self.is_set = True


Entry = LoggedValue | LoggedMetric


class MetricStore:
    """All names logged in one loop, by dataloader and hook.

    The loop writes `batch` and `batch_size` before each batch; `entries` are those of the current dataloader.
    """

    __slots__ = (
        "_all",
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
        # in the order of their first logging: of two entries that end in one name, the later one shows
        self._all: dict[tuple[int | None, str, str], Entry] = {}
        self.by_loader: dict[int | None, dict[tuple[str, str], Entry]] = {None: {}}
        self.entries = self.by_loader[None]
        self.dataloader_idx: int | None = None
        self.in_batch = False
        self.batch: Any = None
        self.batch_size: int | None = 1

    def scratch(self) -> MetricStore:
        """Return an empty store for the same batch, for values that shall not count."""
        other = MetricStore(is_training=self.is_training)
        other.num_dataloaders, other.in_batch = self.num_dataloaders, self.in_batch
        other.batch, other.batch_size = self.batch, self.batch_size
        other.select(self.dataloader_idx)
        return other

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
        """Forget the values of the epoch that is over, and reset the metric objects that were logged in it."""
        for entry in self._all.values():
            entry.reset()

    def clear(self) -> None:
        """Forget all names, at the start of a run."""
        self.reset()
        self._all = {}
        self.by_loader = {None: {}}
        self.logs_steps = False
        self.leave_batches()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what the unfinished epoch has logged, as plain data."""
        return [
            {
                "hook": hook, "name": name, "dataloader_idx": dataloader_idx, "settled": asdict(entry.settled),
                **entry.state_dict(),
            }
            for (dataloader_idx, hook, name), entry in self._all.items()
            if entry.is_set and hook != "on_train_start"  # which is called again
            and (isinstance(entry, LoggedValue) or entry.path is not None)
        ]  # fmt: skip

    def load_state_dict(self, state: list[dict[str, Any]], module: nn.Module) -> None:
        """Let an unfinished epoch go on.

        Args:
            state: What `state_dict` returned.
            module: The module that runs, in which logged metric objects are looked up.
        """
        for row in state:
            settled, name = Settled(**row["settled"]), row["name"]
            entry: Entry
            if "metric" not in row:
                entry = LoggedValue(name, None, settled, self)
            elif (metric := metric_at(module, row["metric"])) is not None:
                entry = LoggedMetric(metric, None, settled, row["metric"])
            else:
                continue  # the module no longer has it
            entry.load_state_dict(row)
            self.select(row["dataloader_idx"])
            self.add(row["hook"], name, entry)
        self.select(None)

    def add(self, hook: str, name: str, entry: Entry) -> None:
        """Take a name that is logged for the first time in this run; what a checkpoint held of it goes on."""
        restored = self.entries.get((hook, name))
        if isinstance(restored, LoggedValue) and isinstance(entry, LoggedValue) and restored.is_set:
            entry.load_state_dict(restored.state_dict())
        self.entries[(hook, name)] = self._all[(self.dataloader_idx, hook, name)] = entry
        self.logs_steps = self.logs_steps or entry.settled.on_step

    def items(self) -> Iterable[tuple[tuple[int | None, str, str], Entry]]:
        """Return all names that were logged, as (dataloader, hook, name), with their entries."""
        return self._all.items()

    def get(self, key: tuple[int | None, str, str]) -> Entry | None:
        """Return the entry of a name, as (dataloader, hook, name), if it was logged."""
        return self._all.get(key)

    def add_at(self, key: tuple[int | None, str, str], entry: Entry) -> None:
        """Take a name that only other ranks have logged."""
        dataloader_idx, hook, name = key
        self.by_loader.setdefault(dataloader_idx, {})[(hook, name)] = self._all[key] = entry

    def metric_paths(self) -> set[str]:
        """Return where the metric objects are that were logged in this run."""
        return {entry.path for entry in self._all.values() if isinstance(entry, LoggedMetric) and entry.path}

    def step_entries(self) -> Iterator[Entry]:
        """Yield what was logged per step; in evaluation only for the current dataloader."""
        for entry in self.entries.values():
            if entry.is_set and entry.settled.on_step:
                yield entry

    def epoch_entries(self) -> Iterator[tuple[int | None, Entry]]:
        """Yield what was logged per epoch, with its dataloader."""
        for (dataloader_idx, _, _), entry in self._all.items():
            if (entry.is_set or entry.synced is not None) and entry.settled.on_epoch:
                yield dataloader_idx, entry


def _extreme(reduction: str, first: Any, second: Any) -> Any:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        pair = torch.as_tensor(first), torch.as_tensor(second)
        return torch.minimum(*pair) if reduction == "min" else torch.maximum(*pair)
    if first != first or second != second:  # NaN stays NaN, as torch.minimum does
        return float("nan")
    return min(first, second) if reduction == "min" else max(first, second)
