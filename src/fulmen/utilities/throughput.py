"""Floating point operations and how fast they are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fulmen.utilities.options import check_number

__all__ = ["Throughput", "measure_flops"]


def measure_flops(
    model: nn.Module, forward_fn: Callable[[], Tensor], loss_fn: Callable[[Tensor], Tensor] | None = None
) -> int:
    """Count the floating point operations of one forward, or of one forward and backward.

    On the meta device nothing is computed, and the count is the same.

    Args:
        model: The model that `forward_fn` calls.
        forward_fn: Runs the forward and returns its output.
        loss_fn: Makes a loss of the output; the backward is counted too then. The gradients stay in the parameters.

    Returns:
        Number of operations (a multiplication and an addition are two).

    Example::

        with torch.device("meta"):
            model = torch.nn.Linear(4, 3)
            batch = torch.randn(5, 4)
        assert measure_flops(model, lambda: model(batch)) == 120
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = forward_fn()
        if loss_fn is not None:
            loss_fn(output).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return int(counter.get_total_flops())


@dataclass(frozen=True, slots=True)
class _Reading:
    time_s: float
    batches: int
    samples: int
    lengths: int | None
    flops: int | None


class Throughput:
    """Rates over a moving window: batches, samples, items and floating point operations in a second.

    Args:
        available_flops: Operations a second that one device can do at most; needed for `device/mfu`.
        world_size: Number of devices; rates of all together are given if it is more than 1.
        window_size: Number of updates that a rate covers; before so many have come there are no rates.
        separator: What stands between `device` and the name of a rate.
        data_parallel_size: On how many batches the devices work at a time; `world_size` unless several devices work on
            one batch together (tensor parallel).

    Attributes:
        available_flops: As given.
        separator: As given.
        world_size: As given.
        data_parallel_size: As given.

    Example::

        throughput = Throughput(window_size=10)
        throughput.update(time=perf_counter() - start, batches=batch_idx, samples=batch_idx * batch_size)
        rates = throughput.compute()
    """

    def __init__(
        self,
        available_flops: float | None = None,
        world_size: int = 1,
        window_size: int = 100,
        separator: str = "/",
        *,
        data_parallel_size: int | None = None,
    ) -> None:
        why = "the number of devices. Pass 1 or more."
        check_number("Throughput", "world_size", world_size, why, least=1, whole=True)
        why = "on how many batches the devices work at a time. Pass 1 to `world_size`, or leave it out."
        check_number(
            "Throughput", "data_parallel_size", data_parallel_size, why,
            least=1, most=world_size, whole=True, optional=True,
        )  # fmt: skip
        why = "the number of updates in a window. A rate needs two points in time. Pass 2 or more."
        check_number("Throughput", "window_size", window_size, why, least=2, whole=True)
        why = "the peak of the chip in operations a second."
        check_number("Throughput", "available_flops", available_flops, why, above=0, optional=True)
        if not isinstance(separator, str):
            raise TypeError(
                f"`Throughput(separator={separator!r})` must be a text: it stands between `device` and the name of a"
                " rate, e.g. '/'."
            )
        self.available_flops = available_flops
        self.separator = separator
        self.world_size = world_size
        self.data_parallel_size = world_size if data_parallel_size is None else data_parallel_size
        self._readings: deque[_Reading] = deque(maxlen=window_size)

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """Add a reading.

        Args:
            time: Seconds since the start.
            batches: Batches since the start, on this device.
            samples: Samples since the start, on this device.
            lengths: Items (such as tokens) since the start, on this device.
            flops: Operations since the reading before this one, on this device.

        Raises:
            ValueError: A value did not grow, or there are more batches than samples.
        """
        if samples < batches:
            raise ValueError(
                f"Expected samples ({samples}) to be greater or equal than batches ({batches}): a batch has at least"
                " one sample. Pass both as totals since the start."
            )
        reading = _Reading(time, batches, samples, lengths, flops)
        if self._readings:
            last = self._readings[-1]
            _check_growth("time", last.time_s, time)
            _check_growth("batches", last.batches, batches)
            _check_growth("samples", last.samples, samples)
            if lengths is not None and last.lengths is not None:
                _check_growth("lengths", last.lengths, lengths)
        self._readings.append(reading)

    def compute(self) -> dict[str, int | float]:
        """Return the last totals and, when the window is full, the rates.

        Returns:
            `time`, `batches`, `samples`, `lengths`; `device/<x>_per_sec` of this device and `<x>_per_sec` of all, where
            `<x>` is batches, samples, items or flops; `device/mfu`, the share of `available_flops` in use. Empty before
            the first update.
        """
        if not self._readings:
            return {}
        last = self._readings[-1]
        results: dict[str, int | float] = {"time": last.time_s, "batches": last.batches, "samples": last.samples}
        if last.lengths is not None:
            results["lengths"] = last.lengths
        if len(self._readings) == self._readings.maxlen:
            rates = self._rates()
            results |= {f"device{self.separator}{name}": rate for name, rate in rates.items()}
            if self.world_size > 1:
                results |= {name: rate * self._num_sources(name) for name, rate in rates.items()}
            if self.available_flops and "flops_per_sec" in rates:
                results[f"device{self.separator}mfu"] = rates["flops_per_sec"] / self.available_flops
        return results

    def _num_sources(self, name: str) -> int:
        """How many times the rate of this device makes that of all: devices share batches, not operations."""
        return self.world_size if name == "flops_per_sec" else self.data_parallel_size

    def _rates(self) -> dict[str, float]:
        first, last = self._readings[0], self._readings[-1]
        elapsed_s = last.time_s - first.time_s
        rates = {
            "batches_per_sec": (last.batches - first.batches) / elapsed_s,
            "samples_per_sec": (last.samples - first.samples) / elapsed_s,
        }
        if first.lengths is not None and last.lengths is not None:
            rates["items_per_sec"] = (last.lengths - first.lengths) / elapsed_s
        flops = [reading.flops for reading in self._readings if reading.flops is not None]
        if len(flops) == len(self._readings):
            rates["flops_per_sec"] = sum(flops[1:]) / elapsed_s  # the first were done before the window
        return rates

    def reset(self) -> None:
        """Forget all readings."""
        self._readings.clear()


def _check_growth(name: str, last: float, current: float) -> None:
    if current <= last:
        raise ValueError(
            f"Expected the value to increase: `{name}` was {last}, and now is {current}. Pass totals since the start,"
            " or call `reset()` first."
        )
