"""Clocks, and what many rounds come down to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["Batches", "Clock", "Setup", "Spread", "summary"]

IN_FEATURES = 32
BATCH_SIZE = 4


class Clock:
    """Seconds between two moments; on a GPU, between the ends of all work queued at them.

    Args:
        device: `"cpu"` or `"cuda"`.
        kind: `"wall"`, or `"cpu"` for the time that this thread has computed: on a busy machine it varies less, but it
            leaves out waiting for a disk or a GPU.
    """

    def __init__(self, device: str, kind: str) -> None:
        self.seconds = 0.0
        self._now = time.thread_time if kind == "cpu" else time.perf_counter
        self._waits = device == "cuda"
        self._started_s = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._wait()
        self._started_s = self._now()

    def stop(self) -> None:
        """Stop to count."""
        self._wait()
        self.seconds = self._now() - self._started_s

    def _wait(self) -> None:
        if self._waits:
            torch.cuda.synchronize()


class Batches:
    """Batches that tell when measuring begins and ends, so that any loop over them is measured in the same way.

    The set-up of a run and its end lie outside of what is measured.

    Args:
        batches: The batches.
        first: Call `enter` when this one is asked for; `leave` is called when the last one is.
        enter: Begins to measure.
        leave: Ends it.
    """

    def __init__(
        self, batches: Sequence[Tensor], first: int, enter: Callable[[], None], leave: Callable[[], None]
    ) -> None:
        self._batches = batches
        self._first = first
        self._enter = enter
        self._leave = leave

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensor]:
        first, last = self._first, len(self._batches) - 1
        for batch_idx, batch in enumerate(self._batches):
            if batch_idx == first:
                self._enter()
            elif batch_idx == last:
                self._leave()
            yield batch


@dataclass
class Setup:
    """How large a measurement is, and on which device."""

    device: str = "cpu"
    clock: str = "wall"
    steps: int = 1000
    warmup: int = 60
    epoch_batches: int = 48  # of the CNN
    tensors: list[Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count = self.warmup + self.steps + 1
        self.tensors = [torch.randn(BATCH_SIZE, IN_FEATURES, device=self.device) for _ in range(count)]

    def new_clock(self) -> Clock:
        """Return a clock of the kind asked for."""
        return Clock(self.device, self.clock)

    def loader(self, num_batches: int) -> DataLoader[Tensor]:
        """Return a loader of a few of the batches."""
        return DataLoader(self.tensors[:num_batches], batch_size=None)  # type: ignore[arg-type]  # a list is a dataset

    def per_step(self, use: Callable[[Batches], object]) -> float:
        """Return the seconds that `use` takes for one of the batches it is given."""
        clock = self.new_clock()
        use(Batches(self.tensors, self.warmup, clock.start, clock.stop))
        return clock.seconds / self.steps


@dataclass(frozen=True)
class Spread:
    """Several rounds of one figure: the median, and the middle half of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize some figures."""
        values = list(values)
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def summary(rounds: Iterable[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Return what the rounds of a case come down to, as plain data for the report.

    Args:
        rounds: For each round, the figure of the plain loop and the measured one.
    """
    pairs = list(rounds)
    figures = {
        "plain": [plain for plain, _ in pairs],
        "measured": [measured for _, measured in pairs],
        "over": [measured - plain for plain, measured in pairs],
        "ratio": [measured / plain for plain, measured in pairs],
    }
    return {name: asdict(Spread.of(values)) for name, values in figures.items()}
