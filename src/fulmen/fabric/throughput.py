"""Rates of a Fabric loop, logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fulmen.utilities.available_flops import get_available_flops
from fulmen.utilities.rank_zero import rank_zero_only
from fulmen.utilities.throughput import Throughput

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric

__all__ = ["ThroughputMonitor"]

_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


class ThroughputMonitor(Throughput):
    """`Throughput` that knows device, precision and number of processes, and logs through Fabric.

    Only the first process measures; the rates of all follow from its own.

    Args:
        fabric: Where to log.
        kwargs: Further arguments of `Throughput`.

    Attributes:
        step: Number of the last log.

    Example::

        monitor = ThroughputMonitor(fabric, window_size=50)
        monitor.update(time=perf_counter() - start, batches=batch_idx, samples=batch_idx * batch_size)
        monitor.compute_and_log()
    """

    def __init__(self, fabric: Fabric, **kwargs: Any) -> None:
        precision = fabric.strategy.precision_plugin.precision
        dtype = _DTYPES.get(precision.partition("-")[0], torch.float32)
        kwargs.setdefault("available_flops", get_available_flops(fabric.device, dtype))
        if "world_size" not in kwargs:
            kwargs["world_size"] = fabric.world_size
            kwargs.setdefault("data_parallel_size", fabric.strategy.data_parallel_size)
        super().__init__(**kwargs)
        self._fabric = fabric
        self.step = -1
        self.update = rank_zero_only(self.update)  # type: ignore[method-assign]
        self.compute = rank_zero_only(self.compute, default={})  # type: ignore[method-assign]
        self.compute_and_log = rank_zero_only(self.compute_and_log, default={})  # type: ignore[method-assign]
        self.reset = rank_zero_only(self.reset)  # type: ignore[method-assign]

    def compute_and_log(self, step: int | None = None, **kwargs: Any) -> dict[str, int | float]:
        """Compute the rates, and send them to the loggers of Fabric.

        Args:
            step: Place on the x axis; by default one more than the last time.
            kwargs: Arguments of `compute`.

        Returns:
            What `compute` returned.
        """
        self.step = self.step + 1 if step is None else step
        metrics = self.compute(**kwargs)
        self._fabric.log_dict(metrics=metrics, step=self.step)
        return metrics
