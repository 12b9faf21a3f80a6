"""When all ranks obey a signal: at the same step, at the price of one small reduction now and then."""

from __future__ import annotations

import time
from typing import Protocol

from fulmen.strategies.strategy import Strategy

__all__ = ["SignalAgreement"]


class _Received(Protocol):
    received: int | None


class SignalAgreement:
    """Spreads a signal that came to one rank, so that all leave the loop at the same step.

    A collective in a signal handler would hang, as the ranks are interrupted at different points; one after each step
    would cost as much as a small step. So the ranks compare what they received only every few steps, and decide at each
    comparison, by the slowest clock, when the next one is: about every `seconds`, at least every `most` steps.

    Args:
        strategy: Reduces integers over ranks.
        signals: Holds the number of a signal that came to this rank; set here if it came to another one.
        seconds: Time between two comparisons.
        most: Steps between two comparisons, however fast they are.
        count: Steps that every rank is sure to make; after them nothing is compared. `None` for no bound.
    """

    __slots__ = ("_interval", "_last", "_left", "_most", "_remaining", "_seconds", "_signals", "_strategy")

    def __init__(
        self,
        strategy: Strategy,
        signals: _Received,
        *,
        seconds: float = 0.5,
        most: int = 64,
        count: int | None = None,
    ) -> None:
        self._strategy = strategy
        self._signals = signals
        self._seconds = seconds
        self._most = most
        self._remaining = count
        self._interval = self._left = 1
        self._last = time.monotonic()

    def reached(self) -> bool:
        """Count a step; tell if all ranks know now of a signal. All ranks must call it equally often."""
        self._left -= 1
        if self._left > 0:
            return False
        if self._remaining is not None:
            self._remaining -= self._interval
            if self._remaining < 0:
                self._left = self._interval
                return False
        now = time.monotonic()
        wanted = int(self._interval * self._seconds / max(now - self._last, 1e-6))
        wanted = min(max(wanted, 1), 2 * self._interval, self._most)
        # the largest of negative numbers is the smallest wish: no rank waits longer than it wants to
        received, negative = self._strategy.agree([self._signals.received or 0, -wanted], op="max")
        self._interval = self._left = -negative
        self._last = time.monotonic()
        if received:
            self._signals.received = received
        return bool(received)
