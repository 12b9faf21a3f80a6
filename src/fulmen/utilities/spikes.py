"""When a loss counts as a jump: far off the mean of the last losses that were none."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Literal

__all__ = ["SpikeRule"]


class SpikeRule:
    """Compares a number with the running mean of earlier ones.

    Args:
        window: Number of values that the mean is over.
        mode: Whether values are to become smaller ("min") or larger ("max"); a jump goes the other way.
        atol: A jump is off by at least this much; `None` for any amount.
        rtol: And by at least this part of the mean; `None` for any.
    """

    def __init__(
        self,
        window: int,
        *,
        mode: Literal["min", "max"] = "min",
        atol: float | None = None,
        rtol: float | None = None,
    ) -> None:
        self.mode = mode
        self.atol = atol
        self.rtol = rtol
        self._recent: deque[float] = deque(maxlen=window)

    @property
    def mean(self) -> float:
        """Mean of the last values; not a number before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else math.nan

    @property
    def is_warm(self) -> bool:
        """Whether the mean is over as many values as it shall be."""
        return len(self._recent) == self._recent.maxlen

    def is_spike(self, value: float) -> bool:
        """Tell whether a finite value is a jump; never before there is another value."""
        if not self._recent:
            return False
        mean = self.mean
        excess = value - mean if self.mode == "min" else mean - value
        return (
            excess > 0
            and (self.atol is None or excess >= abs(self.atol))
            and (self.rtol is None or excess >= abs(self.rtol * mean))
        )

    def add(self, value: float) -> None:
        """Take a value that is no jump into the mean."""
        self._recent.append(value)

    def state_dict(self) -> list[float]:
        """Return the values that the mean is over."""
        return list(self._recent)

    def load_state_dict(self, values: Iterable[float]) -> None:
        """Take over what `state_dict` returned."""
        self._recent = deque(values, maxlen=self._recent.maxlen)
