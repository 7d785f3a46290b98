"""The plots of a page, drawn once for all who look until the metrics grow."""

from __future__ import annotations

from markupsafe import Markup

from console.plots.figures import Axis, Drawn, draw
from console.plots.svg import plot, span_of
from console.run_data.metrics import Metrics


class Plots:
    """The last ones of each axis."""

    def __init__(self) -> None:
        self._drawn: dict[Axis, tuple[int, list[tuple[Drawn, Markup]]]] = {}

    def of(self, metrics: Metrics, axis: Axis) -> list[tuple[Drawn, Markup]]:
        """Figures with their SVG."""
        known = self._drawn.get(axis)
        if known is None or known[0] != metrics.revision:
            figures = draw(metrics, axis)
            span = span_of(figures)
            known = metrics.revision, [(figure, plot(figure, axis, span)) for figure in figures]
            self._drawn[axis] = known
        return known[1]
