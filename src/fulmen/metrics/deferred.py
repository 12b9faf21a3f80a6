"""Logged values of a batch that is computed in parts: held back, and recorded once when all parts are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fulmen.metrics.objects import is_torchmetric, load_metric_states, metric_states
from fulmen.metrics.publish import MetricBoard, Scope
from fulmen.metrics.rules import LogOptions, settle

__all__ = ["DeferringBoard"]


@dataclass(slots=True)
class _Parts:
    """What the parts of a batch have logged with one call of `self.log`."""

    options: LogOptions | tuple[Any, ...]
    values: list[Any] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # those that the user passed as `batch_size`

    def value(self, reduction: str) -> Any:
        """Return the value that the whole batch would have logged."""
        values = self.values
        if len(values) == 1 or is_torchmetric(values[-1]):  # an object has seen all parts by itself
            return values[-1]
        if reduction == "sum":
            return sum(values[1:], values[0])
        if reduction in ("min", "max"):
            best = values[0]
            for value in values[1:]:
                is_better = value < best if reduction == "min" else value > best
                best = value if is_better or value != value else best  # NaN stays, as everywhere
            return best
        weighted = [value * weight for value, weight in zip(values, self.weights, strict=True)]
        return sum(weighted[1:], weighted[0]) / sum(self.weights)


class DeferringBoard(MetricBoard):
    """A `MetricBoard` that can hold back what is logged, for a batch that may have to be computed again.

    Args:
        scope: The name of the hook that is running.
        muted: Whether `self.log` does nothing.
    """

    def __init__(self, scope: Scope, *, muted: bool = False) -> None:
        super().__init__(scope, muted=muted)
        self._held: dict[tuple[str, str, int], _Parts] | None = None
        self._calls: dict[tuple[str, str], int] = {}  # of the running part
        self._part_size = 1

    def log(self, name: str, value: Any, batch_size: int | None, options: LogOptions | tuple[Any, ...]) -> None:
        """Record one value, or hold it back; see `MetricBoard.log`."""
        hook = self.scope.hook
        if self._held is None or self._muted or hook is None:
            super().log(name, value, batch_size, options)
            return
        number = self._calls[hook, name] = self._calls.get((hook, name), 0) + 1
        parts = self._held.get((hook, name, number))
        if parts is None:
            settle(hook, name, value, LogOptions(*options), dataloader_idx=None)  # errors show the user's line
            parts = self._held[hook, name, number] = _Parts(options)
        parts.values.append(value.detach().clone() if isinstance(value, Tensor) else value)
        parts.weights.append(self._part_size if batch_size is None else batch_size)
        if batch_size is not None:
            parts.sizes.append(batch_size)

    def begin_part(self, size: int) -> None:
        """Say how many samples the next part has, which weighs what is logged in it."""
        self._calls, self._part_size = {}, size

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold back what is logged inside; record it at the end, or leave no trace of it after an error.

        Metric objects, which count by themselves, get back what they held before.
        """
        module = self.module
        states = {} if module is None else metric_states(module, with_unused=True)
        self._held = {}
        try:
            yield
        except BaseException:
            self._held = None
            if module is not None:
                load_metric_states(module, states)
            raise
        held, self._held = self._held, None
        self._record(held)

    def _record(self, held: dict[tuple[str, str, int], _Parts]) -> None:
        outer = self.scope.hook
        for (hook, name, _), parts in held.items():
            self.scope.hook = hook
            reduction = settle(hook, name, parts.values[-1], LogOptions(*parts.options), dataloader_idx=None).reduction
            self.log(name, parts.value(reduction), sum(parts.sizes) if parts.sizes else None, parts.options)
        self.scope.hook = outer
