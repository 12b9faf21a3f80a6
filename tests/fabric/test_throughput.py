from __future__ import annotations

from typing import Any

from fulmen import Fabric
from fulmen.fabric.throughput import ThroughputMonitor


class Recorder:
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows.append((metrics, step))


def test_rates_are_logged_with_a_step() -> None:
    recorder = Recorder()
    fabric = Fabric(accelerator="cpu", devices=1, loggers=recorder)  # type: ignore[arg-type]  # looks like one
    monitor = ThroughputMonitor(fabric, window_size=2)
    monitor.update(time=1.0, batches=1, samples=4)
    monitor.update(time=3.0, batches=2, samples=8)
    first = monitor.compute_and_log()
    monitor.compute_and_log(step=7)
    monitor.compute_and_log()

    assert first["device/samples_per_sec"] == 2.0
    assert recorder.rows == [(first, 0), (first, 7), (first, 8)]
    assert monitor.world_size == 1
