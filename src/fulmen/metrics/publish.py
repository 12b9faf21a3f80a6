"""From logged values to what people read: loggers, `callback_metrics`, the progress bar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fulmen.metrics.objects import is_torchmetric, load_metric_states, metric_states, path_of
from fulmen.metrics.ranks import reduce_epoch, reduce_steps
from fulmen.metrics.rules import LogOptions, cannot_log, settle
from fulmen.metrics.store import Entry, LoggedMetric, LoggedValue, MetricStore
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import WarningCache

if TYPE_CHECKING:
    from fulmen.loggers.logger import Logger, XAxis
    from fulmen.metrics.history import History
    from fulmen.strategies.strategy import Strategy

__all__ = ["MetricBoard", "Scope"]

_STEP_KEY = "step"
_warnings = WarningCache()


class Scope:
    """The name of the hook that is running; written by the event table and the loops, read by `self.log`."""

    __slots__ = ("hook",)

    def __init__(self) -> None:
        self.hook: str | None = None


class MetricBoard:
    """Takes `self.log` calls into the store of the running loop and publishes them.

    Nothing is computed per step: the dictionaries are brought up to date when somebody reads them.
    """

    def __init__(self, scope: Scope, *, muted: bool = False) -> None:
        self.scope = scope
        self.active: MetricStore | None = None
        self.module: nn.Module | None = None  # the one that runs: logged metric objects must belong to it
        self.loggers: Sequence[Logger] = []
        self.history: History | None = None  # the table that people read; None on ranks that keep none
        self.clock: Callable[[XAxis], int] | None = None  # for loggers that have chosen their x axis
        self.ranks: Strategy | None = None  # what the ranks exchange values with; None with one process
        self._muted = muted
        self._callback: dict[str, Tensor] = {}
        self._logged: dict[str, Tensor] = {}
        self._progress: dict[str, float] = {}

    # ---- taking values
    def log(self, name: str, value: Any, batch_size: int | None, options: LogOptions | tuple[Any, ...]) -> None:
        """Record one value under the hook that is running.

        Args:
            name: Its name.
            value: A number, one-element tensor or torchmetrics object.
            batch_size: Its weight in the epoch's mean; `None` takes the current batch's number of samples.
            options: The other arguments of `self.log`, in the order of `LogOptions`.
        """
        store = self.active
        if store is None:
            self._refuse(name)
            return
        entry = store.entries.get((self.scope.hook, name))  # type: ignore[arg-type]  # a missing hook is no key
        if entry is None or entry.options != options:
            if self._muted:
                _warnings.warn("`self.log` does nothing under `Trainer(barebones=True)`.")
                return
            entry = self._first(store, name, value, LogOptions(*options), entry)
        entry.add(value, batch_size)

    def _first(
        self, store: MetricStore, name: str, value: Any, options: LogOptions, known: Entry | None
    ) -> LoggedValue | LoggedMetric:
        hook = self.scope.hook
        if hook is None:
            self._refuse(name)
        if known is not None and known.options is not None:
            changed = [
                f"{field}={new!r} (was {old!r})"
                for field, old, new in zip(LogOptions._fields, known.options, options, strict=True)
                if old != new
            ]
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)` was called twice in `{hook}` with different arguments:"
                f" {', '.join(changed)}."
                " Use the same arguments for one name, or different names."
            )
        loader_idx = store.dataloader_idx if store.num_dataloaders > 1 else None
        settled = settle(str(hook), name, value, options, dataloader_idx=loader_idx)
        if options.logger and not self.loggers:
            _warnings.warn(
                f"`self.log({name!r}, logger=True)` has no effect: the Trainer has no logger. Pass"
                " `Trainer(logger=...)`."
            )
        self._check_unique(store, name, settled.plain_name, hook)
        entry: Entry
        if is_torchmetric(value):
            self._warn_if_shared(store, name, value)
            entry = LoggedMetric(value, options, settled, self._path(name, value, options))
        else:
            entry = LoggedValue(name, options, settled, store)
        store.add(str(hook), name, entry)
        return entry

    def _path(self, name: str, metric: Any, options: LogOptions) -> str | None:
        path = None if self.module is None else path_of(self.module, metric)
        if path is None and options.metric_attribute is None:
            kind, owner = type(metric).__name__, type(self.module).__name__
            raise MisconfigurationException(
                f"`self.log({name!r}, {kind}(...))` got a metric that is no attribute of `{owner}`,"
                " so it is not moved to the device with it and cannot be found again. Make it in `__init__`:"
                f" `self.{kind.lower()} = {kind}(...)`; or name where it is: `metric_attribute='...'`."
            )
        return path

    def _check_unique(self, store: MetricStore, name: str, plain_name: str, hook: str | None) -> None:
        if store.num_dataloaders == 1 or store.dataloader_idx is None or plain_name != name:
            return
        for dataloader_idx, entries in store.by_loader.items():
            if dataloader_idx not in (None, store.dataloader_idx) and (hook, name) in entries:
                raise MisconfigurationException(
                    f"`self.log({name!r}, add_dataloader_idx=False)` was called for dataloaders {dataloader_idx} and"
                    f" {store.dataloader_idx}: one would overwrite the other. Use a different name per dataloader."
                )

    def _warn_if_shared(self, store: MetricStore, name: str, metric: Any) -> None:
        for dataloader_idx, entries in store.by_loader.items():
            if dataloader_idx not in (None, store.dataloader_idx) and any(
                isinstance(entry, LoggedMetric) and entry.metric is metric for entry in entries.values()
            ):
                _warnings.warn(
                    f"`self.log({name!r}, ...)` got the same {type(metric).__name__} for dataloaders {dataloader_idx}"
                    f" and {store.dataloader_idx}: it is reset at the end of the epoch, so its values mix the samples"
                    " of both. Make one metric for each dataloader, e.g. in a `torch.nn.ModuleList`."
                )

    def _refuse(self, name: str) -> None:
        if self._muted:
            _warnings.warn("`self.log` does nothing under `Trainer(barebones=True)`.")
            return
        raise cannot_log(name, self.scope.hook)

    # ---- which loop is logging
    def activate(self, store: MetricStore | None) -> MetricStore | None:
        """Let the store of another loop take the values; return the one that did so far."""
        self.refresh()
        previous, self.active = self.active, store
        return previous

    def deactivate(self) -> None:
        """Let no store take values, without a last look at the one that did: its metrics may fail to compute."""
        self.active = None

    def clear(self) -> None:
        """Forget all values, at the start of a run and after the sanity check."""
        self._callback.clear()
        self._logged.clear()
        self._progress.clear()

    def show(self, callback: dict[str, Tensor], logged: dict[str, Tensor], progress: dict[str, float]) -> None:
        """Take over what a run in other processes has shown at its end."""
        self.clear()
        self._callback.update(callback)
        self._logged.update(logged)
        self._progress.update(progress)

    def shown(self) -> dict[str, dict[str, float]]:
        """Return the single values that callbacks and loggers see now, as plain data."""
        self.refresh()
        return {
            kind: {
                name: value.item()
                for name, value in metrics.items()
                if isinstance(value, Tensor) and value.numel() == 1
            }
            for kind, metrics in (("callback_metrics", self._callback), ("logged_metrics", self._logged))
        }

    def recall(self, shown: dict[str, dict[str, float]]) -> None:
        """Show the values that a checkpoint remembers, until they are logged again.

        Args:
            shown: What `shown` returned.
        """
        for kind, metrics in (("callback_metrics", self._callback), ("logged_metrics", self._logged)):
            for name, value in shown.get(kind, {}).items():
                metrics.setdefault(name, torch.tensor(value))

    def to_cpu(self) -> None:
        """Move the values off the device at the end of a run."""
        self.refresh()
        for metrics in (self._callback, self._logged):
            for name, value in metrics.items():
                metrics[name] = value.cpu()

    # ---- reading
    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What callbacks can monitor."""
        self.refresh()
        return self._callback

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """What was sent, or is ready to be sent, to the loggers."""
        self.refresh()
        return self._logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What was logged with `prog_bar=True`."""
        self.refresh()
        return self._progress

    def refresh(self) -> None:
        """Bring the dictionaries up to date with the running loop."""
        store = self.active
        if store is None:
            return
        if not store.in_batch:
            self._show_epoch(entry for _, entry in store.epoch_entries() if self._can_show(entry))
        elif store.batch is not None:  # else validation came after the batch, and its values stay
            for entry in store.step_entries():
                settled, value = entry.settled, entry.step_tensor()
                self._show(settled.step_name, value, entry)
                if store.is_training:
                    self._callback[settled.step_name] = self._callback[settled.plain_name] = value

    def _can_show(self, entry: Entry) -> bool:
        """On several ranks a reader alone must not have a metric object synchronize: the others would not answer."""
        return self.ranks is None or entry.synced is not None or isinstance(entry, LoggedValue)

    def finish_dataloader(self) -> None:
        """Show what the dataloader that came to its end has logged, before the next one begins."""
        self.refresh()
        store = self.active
        if store is not None and self.ranks is None:  # else with the others, at the end of the epoch
            self._show_epoch(e for e in store.entries.values() if e.is_set and e.settled.on_epoch)

    def _show_epoch(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            settled, value = entry.settled, entry.epoch_tensor()
            self._show(settled.epoch_name, value, entry)
            self._callback[settled.epoch_name] = self._callback[settled.plain_name] = value

    def _show(self, name: str, value: Any, entry: Entry) -> None:
        if entry.settled.logger:
            self._logged[name] = value
        if entry.settled.prog_bar:
            self._progress[name] = (
                value.item() if isinstance(value, Tensor) else float(value)
            )  # sync: shown to a person

    # ---- several ranks
    def sync(self, monitor: str | None = None) -> None:
        """Bring the values up to date, over all ranks. All ranks must call it at the same point of the run.

        Args:
            monitor: Within a batch, also reduce the latest value of this name, whatever it was logged with: something
                is about to be decided by it, which must be the same on all ranks.
        """
        store = self.active
        if self.ranks is not None and store is not None:
            if store.in_batch:
                self.sync_steps(() if monitor is None else (monitor,))
                return
            reduce_epoch(store, self.ranks, self.module)
        self.refresh()

    def sync_steps(self, monitored: Collection[str] = ()) -> None:
        """Reduce the step values that were logged with `sync_dist=True` over ranks, before a row is sent.

        Args:
            monitored: Names that are reduced whatever they were logged with: something will be decided by them.
        """
        if self.ranks is not None and self.active is not None:
            others = reduce_steps(self.active, self.ranks, monitored=monitored)
            self.refresh()
            self._callback.update(others)

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Take nothing of what is logged inside, and leave the metric objects as they are: a batch seen twice."""
        store, module = self.active, self.module
        states = {} if module is None else metric_states(module, with_unused=True)
        self.active = None if store is None else store.scratch()
        try:
            yield
        finally:
            self.active = store
            if module is not None:
                load_metric_states(module, states)

    # ---- publishing to loggers and to the history
    def step_rows(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the per-step values of the running loop: those for the loggers, and the others."""
        entries = [] if self.active is None else list(self.active.step_entries())
        sent = {each.settled.step_name: each.step_tensor() for each in entries if each.settled.logger}
        return sent, {each.settled.step_name: each.step_tensor() for each in entries if not each.settled.logger}

    def epoch_rows(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the epoch values of the running loop: those for the loggers, and the others."""
        entries = [] if self.active is None else [entry for _, entry in self.active.epoch_entries()]
        sent = {each.settled.epoch_name: each.epoch_tensor() for each in entries if each.settled.logger}
        return sent, {each.settled.epoch_name: each.epoch_tensor() for each in entries if not each.settled.logger}

    def publish_step(self, step: int, epoch: int | None) -> None:
        """Send the per-step values of the running loop to the loggers and the history as one row."""
        if self.loggers or self.history is not None:
            row, unsent = self.step_rows()
            self.send(row, step, epoch, unsent=unsent)

    def publish_epoch(self, step: int, epoch: int) -> None:
        """Send the epoch values of the running loop to the loggers and the history as one row."""
        if self.loggers or self.history is not None:
            row, unsent = self.epoch_rows()
            self.send(row, step, epoch, unsent=unsent, per_step=False)
            for logger in self.loggers:  # not after each step's row: writers flush by themselves
                logger.save()

    def send(
        self,
        metrics: dict[str, Any],
        step: int,
        epoch: int | None,
        *,
        unsent: dict[str, Any] | None = None,
        per_step: bool = True,
    ) -> None:
        """Write one row to every logger and to the history.

        Args:
            metrics: Names and values; a value named `step` replaces the row's step.
            step: The row's place on the x axis.
            epoch: Added as a column unless `None`.
            unsent: Names and values for the history only.
            per_step: Whether it is a row within an epoch.
        """
        row = metrics
        if self.loggers:
            row = {name: _as_number(value) for name, value in metrics.items()}  # sync: a logger reads
        has_step = _STEP_KEY in row
        if has_step:
            row = dict(row)
            step = int(row.pop(_STEP_KEY))
        if self.history is not None:
            self.history.add({**row, **(unsent or {})}, step, epoch, per_step=per_step)
        if not self.loggers or not metrics:
            return
        if epoch is not None and not has_step:
            row.setdefault("epoch", epoch)
        for logger in self.loggers:
            logger.log_metrics(metrics=row, step=step if has_step else self.step_of(logger, step, epoch))

    def step_of(self, logger: Logger, step: int, epoch: int | None = None) -> int:
        """Return where a row stands on the x axis of a logger.

        Args:
            logger: The logger.
            step: The place by Lightning's numbers.
            epoch: The epoch of the row; `None` for the current one.
        """
        axis = logger.x_axis
        if axis is None or self.clock is None:
            return step
        return self.clock(axis) if epoch is None or axis != "epoch" else epoch

    # ---- results of validate and test
    def evaluation_results(self, num_dataloaders: int) -> list[dict[str, float]]:
        """Return the epoch values, one dict per dataloader; values logged for no loader stand in each."""
        store = self.active
        results: list[dict[str, float]] = [{} for _ in range(num_dataloaders)]
        if store is None:
            return results
        for dataloader_idx, entry in store.epoch_entries():
            if not entry.settled.logger:
                continue
            value = entry.epoch_tensor().item()
            targets = results if dataloader_idx is None or num_dataloaders == 1 else [results[dataloader_idx]]
            for result in targets:
                result[entry.settled.epoch_name] = value
        return results


def _as_number(value: Any) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"A logged metric returned a tensor of shape {tuple(value.shape)}, but loggers take one number."
            )
        return value.item()
    return value  # type: ignore[no-any-return]  # numbers already
