"""The plots of several runs beside each other: a line for every run."""

from __future__ import annotations

from collections.abc import Sequence

from console.plots.figures import FIGURES, Axis, Drawn, Figure, points_of
from console.run_data.compare import labels
from console.run_data.run import Run


def curves(runs: Sequence[Run], axis: Axis) -> list[Drawn]:
    """One plot for the first metric of every figure, with a line for every run."""
    found = []
    for figure in FIGURES:
        series = figure.series[0]
        lines = []
        for label, run in zip(labels(runs), runs, strict=True):
            points = points_of(run.metrics, series, axis)
            if points:
                lines.append((label, series.metric, points))
        if lines:
            title = figure.title if len(figure.series) == 1 else f"{figure.title}: {series.label}"
            found.append(Drawn(Figure(title, figure.unit, (series,), figure.share), lines))
    return found
