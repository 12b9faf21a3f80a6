"""When all ranks obey a signal: at the same step, at the price of one small reduction now and then."""

from __future__ import annotations

import time
from typing import Protocol

from fulmen.strategies.strategy import Strategy

__all__ = ["TIME_IS_UP", "SignalAgreement"]

TIME_IS_UP = 0
"""Stands in the place of a signal's number when the time for training is used up; any signal goes first."""
_NOTHING = -1


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
        has_end: Ranks may end after different numbers of steps, and call `answer` then until all have ended.
    """

    __slots__ = (
        "_has_end",
        "_interval",
        "_is_common",
        "_last",
        "_left",
        "_most",
        "_remaining",
        "_seconds",
        "_signals",
        "_strategy",
    )

    def __init__(
        self,
        strategy: Strategy,
        signals: _Received,
        *,
        seconds: float = 0.5,
        most: int = 64,
        count: int | None = None,
        has_end: bool = False,
    ) -> None:
        self._strategy = strategy
        self._signals = signals
        self._seconds = seconds
        self._most = most
        self._remaining = count
        self._has_end = has_end
        self._interval = self._left = 1
        self._is_common = False  # what was received, at the last comparison
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
        self._interval = self._left = -self._compare(-wanted)[1]
        self._last = time.monotonic()
        return self._is_common

    def reached_now(self) -> bool:
        """Compare at once; tell if all ranks know now of a signal. All ranks must call it at the same step."""
        self._left = 1
        return self.reached()

    def answer(self) -> bool:
        """Answer the ranks that still have steps to make, once this one has none; tell if all know now of a signal."""
        is_running = self._has_end
        while is_running:
            is_running = bool(self._compare(-self._most, is_running=False)[2])
            if self._is_common:
                return True
        return False

    def _compare(self, wanted: int, *, is_running: bool = True) -> list[int]:
        received = self._signals.received
        mine = [_NOTHING if received is None else received, wanted, int(is_running)]
        latest = self._strategy.agree(mine, op="max")
        self._is_common = latest[0] != _NOTHING
        if self._is_common:
            self._signals.received = latest[0]
        return latest
