"""A plot as SVG, without style or script of its own; its points are in an attribute for the cursor's script."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from console.plots.figures import Axis, Drawn, Points

WIDTH, HEIGHT = 480, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 20
_MOST_POINTS = 400
_COLOURS = 4  # of the style sheet


def plot(drawn: Drawn, axis: Axis, span: tuple[float, float]) -> Markup:
    """One plot over `span` of its axis, which all plots of a page share."""
    low, high = _range([y for _, _, points in drawn.lines for _, y in points], drawn.figure.share)
    left, right = span if span[1] > span[0] else (span[0] - 0.5, span[0] + 0.5)

    def across(x: float) -> float:
        return _LEFT + (x - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _TOP + (high - y) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = []
    upwards = ticks(low, high, 4)
    for tick, label in zip(upwards, labels(upwards), strict=True):
        y = f"{up(tick):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{up(tick) + 3.5:.1f}">{label}</text>')
    onwards = [tick for tick in ticks(left, right, 6) if axis != "step" or tick == int(tick)]
    for tick, label in zip(onwards, labels(onwards), strict=True):
        parts.append(f'<text class="tick mid" x="{across(tick):.1f}" y="{HEIGHT - 4}">{label}</text>')
    data = []
    for number, (label, _, points) in ((place % _COLOURS, line) for place, line in enumerate(drawn.lines)):
        shown = thin(points)
        path = " ".join(f"{across(x):.1f},{up(min(max(y, low), high)):.1f}" for x, y in shown)
        if len(shown) > 1:
            parts.append(f'<polyline class="line s{number}" points="{path}"/>')
        if len(shown) < 40:
            parts += [f'<circle class="dot s{number}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2"/>' for x, y in shown]
        data.append({"label": label, "points": [[round(x, 3), float(f"{y:.5g}")] for x, y in shown]})
    frame = json.dumps({"left": left, "right": right, "from": _LEFT, "to": WIDTH - _RIGHT, "axis": axis, "lines": data})
    title = escape(drawn.figure.title)
    return Markup(  # every part is made of numbers, or escaped
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" '
        f'data-plot="{escape(frame)}">{"".join(parts)}'
        f'<line class="cursor" x1="-9" x2="-9" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></svg>'
    )


def span_of(figures: Sequence[Drawn]) -> tuple[float, float]:
    """From the first to the last x of all."""
    xs = [x for drawn in figures for _, _, points in drawn.lines for x, _ in (points[0], points[-1])]
    return (min(xs), max(xs)) if xs else (0.0, 1.0)


def thin(points: Points) -> Points:
    """At most so many as can be seen; the extremes of what is left out stay."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / (_MOST_POINTS / 2))
    kept: Points = []
    for start in range(0, len(points), size):
        block = points[start : start + size]
        kept += sorted({min(block, key=lambda p: p[1]), max(block, key=lambda p: p[1])})
    return kept


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers between two."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, math.floor(high / step + 1e-9) + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Of ticks, each in as few digits as tell it from the others."""
    found = [short(value) for value in values]
    digits = 5
    while len(set(found)) < len(set(values)) and digits < 16:
        found = [short(value, digits) for value in values]
        digits += 1
    return found


def short(value: float, digits: int = 4) -> str:
    """A number in a few characters."""
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.{digits}g}{letter}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-3 else f"{value:.{digits - 2}g}".replace("e-0", "e-")


def _range(values: Sequence[float], share: bool) -> tuple[float, float]:
    if share:
        return 0.0, max(1.0, max(values))
    low, high = min(values), max(values)
    low = min(low, 0.0) if low > -0.3 * abs(high) and low < 0.5 * high else low
    margin = (high - low or abs(high) or 1.0) * 0.06
    return (low if low == 0 else low - margin), high + margin
