"""Draws what a command costs, and how many episodes a minute holds, beside what people use today."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PANELS = {
    "one command at a time, ms": {
        "namespace": "namespace_exec_p50_ms",
        "docker": "docker_guest_exec_p50_ms",
        "SWE-ReX": "swerex_exec_p50_ms",
        "docker exec": "docker_exec_p50_ms",
    },
    "episodes a minute, 16 at once": {
        "namespace": "namespace_episodes16_per_min",
        "docker": "docker_episodes16_per_min",
        "docker exec": "docker_exec_episodes16_per_min",
    },
}


def plot(figures: Mapping[str, float | None], path: Path) -> None:
    """Write a picture of the figures that were measured; logarithmic, for they are far apart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(9, 2.4), layout="constrained")
    for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
        known = {label: value for label, name in names.items() if (value := figures.get(name)) is not None}
        bars = axis.barh(list(known), list(known.values()), color="#3b6ea5")
        axis.bar_label(bars, fmt="%.3g", padding=3)
        axis.set(title=title, xscale="log")
        axis.margins(x=0.2)
        axis.invert_yaxis()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
