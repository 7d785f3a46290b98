"""Every watcher over the metrics of a run: pure functions from its steps to what is to be said of them.

A watcher compares the last steps with the first ones (their medians, so that one odd step says nothing), and names the
step from which on what it saw holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from console.run_data.metrics import Line

_FEWEST = 8  # steps before anything can be called a trend
_WINDOW = 5  # steps whose median stands for "now"


class Finding(NamedTuple):
    """One line: what was seen, since which step, and what people try."""

    name: str
    seen: str
    since: int
    advice: str
    metric: str  # whose plot shows it

    @property
    def line(self) -> str:
        """The whole."""
        return f"{self.seen}, since step {self.since}. {self.advice}"


def watch(steps: Sequence[Line], samples: Sequence[Line] = ()) -> list[Finding]:
    """What is to be said of these optimizer steps (in their order) and samples of the system; the oldest trouble first.

    Args:
        samples: may be thinned; their `step` says which step they follow.
    """
    found = [finding for watcher in WATCHERS if (finding := watcher(steps, samples)) is not None]
    return sorted(found, key=lambda finding: finding.since)


def entropy_falls(steps: Sequence[Line], _: Sequence[Line]) -> Finding | None:
    """To below a third of what it began with."""
    series = _series(steps, "entropy_mean")
    since = _since(series, lambda first, now: first > 0 and now < first / 3)
    if since is None:
        return None
    return Finding(
        "entropy_falls",
        f"Entropy fell from {_first(series):.3g} to {_now(series):.3g}: the policy says less and less that is new",
        since,
        "People raise eps_high (clip-higher), lower the learning rate, or take harder tasks.",
        "entropy_mean",
    )


def entropy_explodes(steps: Sequence[Line], _: Sequence[Line]) -> Finding | None:
    """To more than twice, and by a tenth of a nat."""
    series = _series(steps, "entropy_mean")
    since = _since(series, lambda first, now: now > 2 * first and now > first + 0.1)
    if since is None:
        return None
    return Finding(
        "entropy_explodes",
        f"Entropy rose from {_first(series):.3g} to {_now(series):.3g}: the policy comes apart",
        since,
        "People lower the learning rate and eps_high, and look whether the mismatch grew before it.",
        "entropy_mean",
    )


def mismatch_grows(steps: Sequence[Line], _: Sequence[Line]) -> Finding | None:
    """Learner against generator under the same weights: to three times its beginning, above 0.01."""
    series = _series(steps, "fresh_mismatch_abs_mean")
    since = _since(series, lambda first, now: now > 0.01 and now > 3 * first)
    if since is None:
        return None
    return Finding(
        "mismatch_grows",
        f"Learner and generators differ more and more about the same weights ({_first(series):.2g} to "
        f"{_now(series):.2g} in log-prob)",
        since,
        "People check the generators' dtype and kernels, use a truncated importance weight, or a smaller staleness.",
        "fresh_mismatch_abs_mean",
    )


def much_is_clipped(steps: Sequence[Line], _: Sequence[Line]) -> Finding | None:
    """A fifth of the tokens and more."""
    clipped = [
        (number, low + high)
        for (number, low), (_, high) in zip(
            _series(steps, "clipped_low_share"), _series(steps, "clipped_high_share"), strict=False
        )
    ]
    since = _since(clipped, lambda _, now: now > 0.2)
    if since is None:
        return None
    return Finding(
        "much_is_clipped",
        f"{100 * _now(clipped):.0f} % of the tokens are clipped and teach nothing",
        since,
        "People lower max_staleness or the learning rate, or clip sequences rather than tokens.",
        "clipped_high_share",
    )


def stale(steps: Sequence[Line], _: Sequence[Line]) -> Finding | None:
    """The share of the batch that its weights still stand for (effective sample size)."""
    series = _series(steps, "effective_sample_share")
    since = _since(series, lambda _, now: now < 0.5)
    if since is None:
        return None
    return Finding(
        "off_policy",
        f"Importance weights leave {100 * _now(series):.0f} % of the batch effective: what is trained on is too old",
        since,
        "People lower max_staleness, make batches smaller, or use the decoupled objective.",
        "effective_sample_share",
    )


def lengths_drift(steps: Sequence[Line], _: Sequence[Line]) -> Finding | None:
    """Episodes twice or half as long as they were."""
    series = _series(steps, "trajectory_tokens_mean")
    since = _since(series, lambda first, now: first > 0 and (now > 2 * first or now < first / 2))
    if since is None:
        return None
    longer = _now(series) > _first(series)
    return Finding(
        "lengths_drift",
        f"Episodes are {'longer' if longer else 'shorter'} than they were ({_first(series):.0f} to "
        f"{_now(series):.0f} tokens)",
        since,
        "People look for loops, and set the length penalty's threshold."
        if longer
        else "People read a few: an agent that gives up early is paid for nothing, or finds a way around.",
        "trajectory_tokens_mean",
    )


def gradients_explode(steps: Sequence[Line], _: Sequence[Line]) -> Finding | None:
    """Ten times their beginning."""
    series = _series(steps, "gradient_norm")
    since = _since(series, lambda first, now: now > 10 * first > 0)
    if since is None:
        return None
    return Finding(
        "gradients_explode",
        f"The gradient's norm rose from {_first(series):.2g} to {_now(series):.2g}",
        since,
        "People lower the learning rate, warm up longer, and look at the mismatch.",
        "gradient_norm",
    )


def reward_falls(steps: Sequence[Line], _: Sequence[Line]) -> Finding | None:
    """To less than half of the best it was."""
    series = _smooth(_series(steps, "reward_mean"))
    if len(series) < _FEWEST:
        return None
    peak = max(range(len(series)), key=lambda place: series[place][1])
    best, now = series[peak][1], series[-1][1]
    if best <= 0.05 or now > best / 2:
        return None
    since = next(number for number, value in series[peak:] if value <= best / 2)
    return Finding(
        "reward_falls",
        f"Reward fell from {best:.2f} (step {series[peak][0]}) to {now:.2f}",
        since,
        f"People go back to a checkpoint near step {series[peak][0]} with a lower learning rate.",
        "reward_mean",
    )


def nothing_is_solved(steps: Sequence[Line], samples: Sequence[Line]) -> Finding | None:
    """Nearly all groups are thrown away because their members are equal."""
    series = [
        (int(sample.get("step", 0)), sample["replay.filtered.no_signal"] / sample["replay.accepted"])
        for sample in samples
        if sample.get("replay.accepted", 0) >= 64 and "replay.filtered.no_signal" in sample
    ]
    since = _since(series, lambda _, now: now > 0.9)
    if since is None:
        return None
    return Finding(
        "no_signal",
        f"{100 * _now(series):.0f} % of the episodes are in groups whose members are all equal, and teach nothing",
        since,
        "People take easier tasks (or harder ones, if all are solved), larger groups, or fine-tune by rejection first.",
        "replay.filtered.no_signal",
    )


def format_errors(steps: Sequence[Line], samples: Sequence[Line]) -> Finding | None:
    """More than one turn in ten cannot be read."""
    series = _rates(samples, "actors.format_errors", "actors.episodes_finished")
    turns = [sample.get("actors.turns_mean", 0.0) for sample in samples]
    typical = median(turns[-_WINDOW:]) if turns else 0.0
    since = _since(series, lambda _, now: typical > 0 and now / typical > 0.1)
    if since is None:
        return None
    return Finding(
        "format_errors",
        f"{_now(series):.1f} turns an episode cannot be read as a command",
        since,
        "People fine-tune by rejection first, check the chat template, or change the scaffold.",
        "actors.format_errors",
    )


def one_task_dominates(steps: Sequence[Line], samples: Sequence[Line]) -> Finding | None:
    """A source gives nine tenths of what is trained on, where there are several."""
    series = []
    for sample in samples:
        trained = {name: value for name, value in sample.items() if name.startswith("replay.trained.")}
        if len(trained) > 1 and sum(trained.values()) >= 64:
            series.append((int(sample.get("step", 0)), max(trained.values()) / sum(trained.values())))
    since = _since(series, lambda _, now: now > 0.9)
    if since is None:
        return None
    newest: Mapping[str, float] = samples[-1]
    name = max((n for n in newest if n.startswith("replay.trained.")), key=lambda n: newest[n])
    return Finding(
        "one_source_dominates",
        f"{100 * _now(series):.0f} % of what is trained on comes from {name.removeprefix('replay.trained.')}",
        since,
        "People weigh the sources anew, or drop tasks that are always solved.",
        name,
    )


def failures(steps: Sequence[Line], samples: Sequence[Line]) -> Finding | None:
    """One episode in ten and more fails for reasons that are not the agent's."""
    series = []
    for sample in samples:
        failed, finished = sample.get("actors.episodes_failed", 0.0), sample.get("actors.episodes_finished", 0.0)
        if failed + finished >= 24:
            series.append((int(sample.get("step", 0)), failed / (failed + finished)))
    since = _since(series, lambda _, now: now > 0.1)
    if since is None:
        return None
    return Finding(
        "infrastructure_fails",
        f"{100 * _now(series):.0f} % of the episodes fail by infrastructure and are run again",
        since,
        "Look at the logs of the sandbox actors: `actors.failed_*` names the cause.",
        "actors.episodes_failed",
    )


WATCHERS: tuple[Callable[[Sequence[Line], Sequence[Line]], Finding | None], ...] = (
    entropy_falls,
    entropy_explodes,
    mismatch_grows,
    much_is_clipped,
    stale,
    lengths_drift,
    gradients_explode,
    reward_falls,
    nothing_is_solved,
    format_errors,
    one_task_dominates,
    failures,
)

Series = list[tuple[int, float]]


def _series(lines: Sequence[Line], name: str) -> Series:
    return [(int(line.get("step", 0)), line[name]) for line in lines if name in line]


def _rates(samples: Sequence[Line], above: str, below: str) -> Series:
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


def _smooth(series: Series) -> Series:
    """Each value is the median of the window that ends with it."""
    values = [value for _, value in series]
    return [(number, median(values[max(0, i + 1 - _WINDOW) : i + 1])) for i, (number, _) in enumerate(series)]


def _first(series: Series) -> float:
    return median(value for _, value in series[:_WINDOW])


def _now(series: Series) -> float:
    return median(value for _, value in series[-_WINDOW:])


def _since(series: Series, holds: Callable[[float, float], bool]) -> int | None:
    """The step from which on `holds(first, value)` is true of the smoothed series; None if it is not at its end."""
    if len(series) < _FEWEST:
        return None
    first, since = _first(series), None
    for number, value in reversed(_smooth(series)):
        if not holds(first, value):
            break
        since = number
    return since
