"""The plots of a run: which metrics are in which, over steps or over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from console.run_data.metrics import Line, Metrics

Axis = Literal["step", "time"]
Points = list[tuple[float, float]]


class Series(NamedTuple):
    """One line of a plot."""

    label: str
    metric: str
    kind: Literal["step", "system"] = "step"


class Figure(NamedTuple):
    """One plot. `unit` is what its values are in; `share` says that they lie between 0 and 1."""

    title: str
    unit: str
    series: tuple[Series, ...]
    share: bool = False


class Drawn(NamedTuple):
    """A plot with its points: (label, metric, points) of every line that has some."""

    figure: Figure
    lines: list[tuple[str, str, Points]]


FIGURES = (
    Figure("Reward", "", (Series("reward", "reward_mean"), Series("solved", "resolved_share"))),
    Figure("Entropy", "nat/token", (Series("entropy", "entropy_mean"),)),
    Figure(
        "Mismatch of log-probs",
        "nat",
        (Series("same weights", "fresh_mismatch_abs_mean"), Series("all tokens", "mismatch_abs_mean")),
    ),
    Figure("Staleness", "versions", (Series("mean", "staleness_mean"), Series("largest", "staleness_max"))),
    Figure(
        "Clipped tokens",
        "share",
        (Series("low", "clipped_low_share"), Series("high", "clipped_high_share")),
    ),
    Figure("Gradient norm", "", (Series("norm", "gradient_norm"),)),
    Figure("Loss", "", (Series("loss", "loss_mean"),)),
    Figure("Length of an episode", "tokens", (Series("tokens", "trajectory_tokens_mean"),)),
    Figure("Turns of an episode", "", (Series("turns", "turns_mean"),)),
    Figure(
        "Time of a step",
        "s",
        (Series("waits", "wait_s"), Series("trains", "train_s"), Series("publishes", "publish_s")),
    ),
    Figure(
        "Throughput",
        "tokens/s",
        (Series("learner", "tokens_per_s"), Series("generators", "generator.tok_s", "system")),
    ),
    Figure(
        "Episodes now",
        "",
        (
            Series("generating", "actors.episodes_generating", "system"),
            Series("executing", "actors.episodes_executing", "system"),
            Series("grading", "actors.episodes_grading", "system"),
            Series("starting", "actors.episodes_starting", "system"),
        ),
    ),
    Figure(
        "Generators",
        "share",
        (
            Series("had nothing to do", "generator.wait_share", "system"),
            Series("KV cache used", "generator.kv_used_share", "system"),
            Series("prefix hits", "generator.prefix_hit_share", "system"),
        ),
        share=True,
    ),
    Figure(
        "Host",
        "share",
        (
            Series("memory", "actors.host_memory_share", "system"),
            Series("processors", "actors.host_cpu_share", "system"),
        ),
        share=True,
    ),
    Figure("Pass rate of all episodes", "", (Series("pass rate", "replay.pass_rate", "system"),), share=True),
)


HELD_OUT = Figure("Held-out score", "pass@1", (Series("pass@1", "held_out"),), share=True)
"""Of evaluations, which are no lines of the metrics."""


def draw(metrics: Metrics, axis: Axis, held_out: Sequence[tuple[int, float]] = ()) -> list[Drawn]:
    """The figures that this run has points for.

    Over steps, samples of the system that follow the same step are averaged; time is in minutes since the first line.
    """
    found = []
    for figure in FIGURES:
        lines = []
        for series in figure.series:
            points = points_of(metrics, series, axis)
            if points:
                lines.append((series.label, series.metric, points))
        if lines:
            found.append(Drawn(figure, lines))
    if held_out and axis == "step":
        points = [(float(step), score) for step, score in held_out]
        found.insert(1, Drawn(HELD_OUT, [("pass@1", "held_out", points)]))
    return found


def points_of(metrics: Metrics, series: Series, axis: Axis) -> Points:
    """The points of one line; none where the run lacks the metric."""
    records, samples = metrics.records, metrics.samples
    began = min((line["time"] for line in (*records[:1], *samples[:1])), default=0.0)
    return _points(records if series.kind == "step" else samples, series.metric, axis, began)


def _points(lines: list[Line], metric: str, axis: Axis, began: float) -> Points:
    if axis == "time":
        return [((line["time"] - began) / 60, line[metric]) for line in lines if metric in line]
    by_step: dict[float, list[float]] = defaultdict(list)
    for line in lines:
        if metric in line and "step" in line:
            by_step[line["step"]].append(line[metric])
    return [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]
