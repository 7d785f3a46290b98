"""A few of a run's plots as PNG images, for a slide or a message, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from console.plots.figures import Axis, Drawn
from protocol.errors import ConfigError

FEW = ("Reward", "Held-out score", "Entropy", "Mismatch of log-probs", "Time of a step", "Throughput")
"""Titles of the figures that become images."""
_INCHES, _DPI = (7.0, 3.6), 120


def write_images(drawn: Sequence[Drawn], axis: Axis, directory: Path) -> list[Path]:
    """`reward.png` and so on; none where matplotlib is not installed. Raises `ConfigError` where they cannot be."""
    chosen = [plot for plot in drawn if plot.figure.title in FEW]
    if not chosen or importlib.util.find_spec("matplotlib") is None:
        return []
    try:
        directory.mkdir(exist_ok=True)
        return [_write(plot, axis, directory) for plot in chosen]
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}", kind="report") from error


def _write(drawn: Drawn, axis: Axis, directory: Path) -> Path:
    from matplotlib.figure import Figure  # without pyplot: no windows, nothing global
    from matplotlib.ticker import MaxNLocator

    image = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    axes = image.add_subplot()
    for label, _, points in drawn.lines:
        axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 40 else "")
    axes.set_title(drawn.figure.title, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=axis == "step"))
    axes.set_xlabel("step" if axis == "step" else "minutes")
    axes.set_ylabel(drawn.figure.unit)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(drawn.lines) > 1:
        axes.legend(frameon=False)
    path = directory / f"{re.sub(r'[^a-z]+', '-', drawn.figure.title.lower())}.png"
    image.savefig(path)
    return path
