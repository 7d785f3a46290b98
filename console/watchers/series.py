"""Curves as watchers look at them: medians over windows, so that one odd step says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from console.run_data.metrics import Line

FEWEST = 8  # steps before anything can be called a trend
WINDOW = 5  # steps whose median stands for "now"

Series = list[tuple[int, float]]


def series_of(lines: Sequence[Line], name: str) -> Series:
    return [(int(line.get("step", 0)), line[name]) for line in lines if name in line]


def rates_of(samples: Sequence[Line], above: str, below: str) -> Series:
    """Growth of one counter over the growth of another, between samples in which the other grew."""
    rates: Series = []
    before: Line | None = None
    for sample in samples:
        if above not in sample or below not in sample:
            continue
        if before is None or sample[below] < before[below]:  # the first one, or a new life counts from 0
            before = sample
        elif sample[below] >= before[below] + 16:
            grown = (sample[above] - before[above]) / (sample[below] - before[below])
            rates.append((int(sample.get("step", 0)), grown))
            before = sample
    return rates


def smooth(series: Series) -> Series:
    """Each value is the median of the window that ends with it."""
    values = [value for _, value in series]
    return [(number, median(values[max(0, i + 1 - WINDOW) : i + 1])) for i, (number, _) in enumerate(series)]


def first_of(series: Series) -> float:
    return median(value for _, value in series[:WINDOW])


def now_of(series: Series) -> float:
    return median(value for _, value in series[-WINDOW:])


def since_when(series: Series, holds: Callable[[float, float], bool]) -> int | None:
    """The step from which on `holds(first, value)` is true of the smoothed series; None if it is not at its end."""
    if len(series) < FEWEST:
        return None
    first, since = first_of(series), None
    for number, value in reversed(smooth(series)):
        if not holds(first, value):
            break
        since = number
    return since
