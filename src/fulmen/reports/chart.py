"""Curves as inline SVG."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fulmen.reports.metrics_files import Curve

__all__ = ["DrawnCurve", "chart", "number_text", "ticks"]

WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 12, 34
_MOST_POINTS = 480  # more cannot be told apart on the screen; extremes are kept
_SMOOTHED_FROM = 60  # points, from which on a running mean is drawn above a noisy curve
_LARGEST = sys.float_info.max
_LOGARITHMIC_FROM = 1000.0  # ratio of the largest value to the smallest
_BUNCHED_BELOW = 30.0  # ratio of the largest value to the middle one


@dataclass(frozen=True, slots=True)
class DrawnCurve:
    """A curve with its name in the legend, color (a CSS class `c0` ...) and dash (`d0` ...)."""

    label: str
    curve: Curve
    color: int
    dash: int = 0


def chart(title: str, curves: Sequence[DrawnCurve]) -> str:
    """Return one panel: an SVG with axes, curves and what a pointer over it shows.

    Args:
        title: What it shows, for those who hear the page.
        curves: At least one.
    """
    drawn = [(each, each.curve.finite) for each in curves]
    points = [point for _, finite in drawn for point in finite]
    if not points:
        return '<p class="empty">No finite values to draw.</p>'
    frame = _Frame.around(points)
    parts = [_grid(frame)]
    for each, finite in drawn:
        parts.append(_curve(frame, each, finite))
    hover = json.dumps([_hover(frame, each, finite) for each, finite in drawn], separators=(",", ":"))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}"'
        f' data-curves="{escape(hover, quote=True)}">{"".join(parts)}'
        f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" visibility="hidden"/></svg>'
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """How values become places in the picture."""

    x0: float
    x1: float
    y0: float
    y1: float
    is_log: bool

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]]) -> _Frame:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        low, high = min(ys), max(ys)
        # most values are then a thin line at the bottom of a linear picture; a learning rate that ends at 0 is not so
        is_log = 0 < low * _LOGARITHMIC_FROM < high and sorted(ys)[len(ys) // 2] < high / _BUNCHED_BELOW
        if is_log:
            low, high = math.log10(low), math.log10(high)
        margin = (0.05 * high - 0.05 * low) or 0.05 * abs(high) or 0.5
        x0, x1 = min(xs), max(xs)
        if x0 == x1:
            x0, x1 = x0 - 0.5, x1 + 0.5
        return cls(x0, x1, max(low - margin, -_LARGEST), min(high + margin, _LARGEST), is_log)

    def x(self, value: float) -> float:
        # divided before they are subtracted, as the difference of two large numbers may be infinite
        share = (value / 2 - self.x0 / 2) / (self.x1 / 2 - self.x0 / 2)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        value = math.log10(value) if self.is_log else value
        share = (value / 2 - self.y0 / 2) / (self.y1 / 2 - self.y0 / 2)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def _grid(frame: _Frame) -> str:
    parts = []
    for value in _value_ticks(frame):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{number_text(value)}</text>')
    for value in ticks(frame.x0, frame.x1, 6):
        x = frame.x(value)
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_step(value)}</text>'
        )
    bottom = HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    scale = " · log scale" if frame.is_log else ""
    parts.append(f'<text class="tick" x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step{scale}</text>')
    return "".join(parts)


def _value_ticks(frame: _Frame) -> list[float]:
    if not frame.is_log:
        return ticks(frame.y0, frame.y1, 5)
    every = max(1, math.ceil((frame.y1 - frame.y0) / 5))
    powers = range(math.ceil(frame.y0), math.floor(frame.y1) + 1)
    return [10.0**power for power in powers if power % every == 0]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers between two numbers.

    Args:
        low: The smaller one.
        high: The larger one.
        most: How many are wanted at most.
    """
    span = high / most - low / most
    if not (0 < span < math.inf):
        return [low]
    power = 10.0 ** math.floor(math.log10(span))
    if power == 0.0:  # subnormal
        return [low]
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= span * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) if abs(step) > 1e-9 else number * step for number in range(first, last + 1)]


def number_text(value: float) -> str:
    """Return a number as people write it, with four digits that count.

    Args:
        value: Any float.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 1e5:
        return str(int(value))
    return f"{value:.4g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def _step(value: float) -> str:
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"


# ---- a curve
def _curve(frame: _Frame, drawn: DrawnCurve, finite: Sequence[tuple[float, float]]) -> str:
    classes = f"c{drawn.color} d{drawn.dash}"
    parts = []
    runs = _unbroken(drawn.curve)
    is_noisy = len(finite) >= _SMOOTHED_FROM
    if is_noisy:
        means = _running_mean(finite)
        parts += [_line(frame, run, f"{classes} raw") for run in runs]
        parts.append(_line(frame, means, classes))
    else:
        parts += [_line(frame, run, classes) for run in runs]
        parts += [f'<circle class="{classes}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="2.4"/>' for x, y in finite]
    bottom = HEIGHT - _BOTTOM
    for x, _ in _thinned(drawn.curve.not_finite):
        if frame.x0 <= x <= frame.x1:
            parts.append(
                f'<text class="{classes} bad" x="{frame.x(x)}" y="{bottom}" text-anchor="middle">&times;</text>'
            )
    return "".join(parts)


def _unbroken(curve: Curve) -> list[list[tuple[float, float]]]:
    """The parts of a curve between values that are not finite."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.steps, curve.values, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _line(frame: _Frame, points: Sequence[tuple[float, float]], classes: str) -> str:
    places = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in _thinned(points))
    return f'<polyline class="{classes}" points="{places}"/>'


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as can be told apart: of each piece the lowest and the highest."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    kept: list[tuple[float, float]] = []
    pieces = _MOST_POINTS // 2
    for number in range(pieces):
        piece = points[number * len(points) // pieces : (number + 1) * len(points) // pieces]
        low, high = min(piece, key=lambda point: point[1]), max(piece, key=lambda point: point[1])
        kept += [low] if low == high else sorted((low, high))
    return kept


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean over a window around each point; it is narrower at the ends."""
    half = max(2, len(points) // 40)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    means = []
    for position, (x, y) in enumerate(points):
        reach = min(half, position, len(points) - 1 - position)
        mean = (sums[position + reach + 1] - sums[position - reach]) / (2 * reach + 1)
        means.append((x, mean if math.isfinite(mean) else y))
    low, high = min(y for _, y in points), max(y for _, y in points)  # differences of sums round
    return [(x, min(max(y, low), high)) for x, y in means]


def _hover(frame: _Frame, drawn: DrawnCurve, finite: Sequence[tuple[float, float]]) -> list[object]:
    """What the script needs: label, color, and points as (place, step, value as text)."""
    points = [[frame.x(x), _exact(x), number_text(y)] for x, y in _thinned(finite)]
    return [drawn.label, drawn.color, points]


def _exact(step: float) -> str:
    return f"{step:.0f}" if step == int(step) else f"{step:g}"
