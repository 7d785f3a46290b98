"""The plots of a page, drawn once for all who look until the metrics grow."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from console.plots.figures import Axis, Drawn, draw
from console.plots.svg import plot, span_of
from console.run_data.metrics import Metrics


class Plots:
    """The last ones of each axis."""

    def __init__(self) -> None:
        self._drawn: dict[Axis, tuple[object, list[tuple[Drawn, Markup]]]] = {}

    def of(
        self, metrics: Metrics, axis: Axis, held_out: Sequence[tuple[int, float]] = ()
    ) -> list[tuple[Drawn, Markup]]:
        """Figures with their SVG."""
        known, revision = self._drawn.get(axis), (metrics.revision, tuple(held_out))
        if known is None or known[0] != revision:
            figures = draw(metrics, axis, held_out)
            span = span_of(figures)
            known = revision, [(figure, plot(figure, axis, span)) for figure in figures]
            self._drawn[axis] = known
        return known[1]
