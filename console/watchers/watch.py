"""Every watcher over the metrics of a run: from its steps and samples to what is to be said of them.

A watcher compares the last steps with the first ones (their medians, so that one odd step says nothing), and names the
step from which on what it saw holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from console.run_data.metrics import Line
from console.watchers.series import FEWEST, WINDOW, Series, first_of, now_of, rates_of, series_of, since_when, smooth


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


class Seen(NamedTuple):
    """What a run shows to its watchers."""

    steps: Sequence[Line]  # optimizer steps in their order
    samples: Sequence[Line]  # of the system, maybe thinned; their `step` says which step they follow
    held_out: Series  # scores on held-out tasks, by the step whose checkpoint had them


class Watcher(NamedTuple):
    """A curve, and what is wrong with it when `holds(first, now)` from some step to the end."""

    name: str
    metric: str
    holds: Callable[[float, float], bool]
    words: Callable[[float, float], str]  # of first and now
    advice: str
    curve: Callable[[Seen], Series] | None = None  # where it is not the metric's own over steps

    def look(self, seen: Seen) -> Finding | None:
        """What is to be said."""
        series = series_of(seen.steps, self.metric) if self.curve is None else self.curve(seen)
        since = since_when(series, self.holds)
        if since is None:
            return None
        return Finding(self.name, self.words(first_of(series), now_of(series)), since, self.advice, self.metric)


def watch(
    steps: Sequence[Line], samples: Sequence[Line] = (), held_out: Sequence[tuple[int, float]] = ()
) -> list[Finding]:
    """What is to be said of these optimizer steps (in their order), samples of the system, and held-out scores by step;
    the oldest trouble first.
    """
    seen = Seen(steps, samples, list(held_out))
    looks = [*(watcher.look for watcher in WATCHERS), *OTHERS]
    found = [finding for look in looks if (finding := look(seen)) is not None]
    return sorted(found, key=lambda finding: finding.since)


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _clipped(seen: Seen) -> Series:
    low, high = (dict(series_of(seen.steps, f"clipped_{side}_share")) for side in ("low", "high"))
    return [(number, low[number] + high[number]) for number in low if number in high]


def _one_sided(seen: Seen) -> Series:
    """The share of the larger sign, whichever that is."""
    return [(number, max(share, 1 - share)) for number, share in series_of(seen.steps, "positive_advantage_share")]


def _largest_task(seen: Seen) -> Series:
    """Where a batch has groups enough that no task needs to be half of it."""
    return series_of([step for step in seen.steps if step.get("num_groups", 0) >= 4], "largest_task_share")


def _without_signal(seen: Seen) -> Series:
    return [
        (int(sample.get("step", 0)), sample["replay.filtered.no_signal"] / sample["replay.accepted"])
        for sample in seen.samples
        if sample.get("replay.accepted", 0) >= 64 and "replay.filtered.no_signal" in sample
    ]


def _unread_share(seen: Seen) -> Series:
    """Of an episode's turns."""
    turns = [sample.get("actors.turns_mean", 0.0) for sample in seen.samples]
    typical = median(turns[-WINDOW:]) if turns else 0.0
    rates = rates_of(seen.samples, "actors.format_errors", "actors.episodes_finished")
    return [(number, rate / typical) for number, rate in rates] if typical > 0 else []


def _failed_share(seen: Seen) -> Series:
    series = []
    for sample in seen.samples:
        failed, finished = sample.get("actors.episodes_failed", 0.0), sample.get("actors.episodes_finished", 0.0)
        if failed + finished >= 24:
            series.append((int(sample.get("step", 0)), failed / (failed + finished)))
    return series


WATCHERS = (
    Watcher(
        "entropy_falls",
        "entropy_mean",
        lambda first, now: first > 0 and now < first / 3,
        lambda first, now: f"Entropy fell from {first:.3g} to {now:.3g}: the policy says less and less that is new",
        "People raise eps_high (clip-higher), lower the learning rate, or take harder tasks.",
    ),
    Watcher(
        "entropy_explodes",
        "entropy_mean",
        lambda first, now: now > 2 * first and now > first + 0.1,
        lambda first, now: f"Entropy rose from {first:.3g} to {now:.3g}: the policy comes apart",
        "People lower the learning rate and eps_high, and look whether the mismatch grew before it.",
    ),
    Watcher(
        "mismatch_grows",
        "fresh_mismatch_abs_mean",
        lambda first, now: now > 0.01 and now > 3 * first,
        lambda first, now: (
            f"Learner and generators differ more and more about the same weights ({first:.2g} to {now:.2g} in log-prob)"
        ),
        "People check the generators' dtype and kernels, use a truncated importance weight, or a smaller staleness.",
    ),
    Watcher(
        "much_is_clipped",
        "clipped_high_share",
        lambda _, now: now > 0.2,
        lambda _, now: f"{_percent(now)} of the tokens are clipped and teach nothing",
        "People lower max_staleness or the learning rate, or clip sequences rather than tokens.",
        _clipped,
    ),
    Watcher(
        "off_policy",
        "effective_sample_share",
        lambda _, now: now < 0.5,
        lambda _, now: (
            f"Importance weights leave {_percent(now)} of the batch effective: what is trained on is too old"
        ),
        "People lower max_staleness, make batches smaller, or use the decoupled objective.",
    ),
    Watcher(
        "longer_episodes",
        "trajectory_tokens_mean",
        lambda first, now: first > 0 and now > 2 * first,
        lambda first, now: f"Episodes are longer than they were ({first:.0f} to {now:.0f} tokens)",
        "People look for loops, and set the length penalty's threshold.",
    ),
    Watcher(
        "shorter_episodes",
        "trajectory_tokens_mean",
        lambda first, now: first > 0 and now < first / 2,
        lambda first, now: f"Episodes are shorter than they were ({first:.0f} to {now:.0f} tokens)",
        "People read a few: an agent that gives up early is paid for nothing, or finds a way around.",
    ),
    Watcher(
        "gradients_explode",
        "gradient_norm",
        lambda first, now: now > 10 * first > 0,
        lambda first, now: f"The gradient's norm rose from {first:.2g} to {now:.2g}",
        "People lower the learning rate, warm up longer, and look at the mismatch.",
    ),
    Watcher(
        "one_sided_advantages",
        "positive_advantage_share",
        lambda _, now: now > 0.95,
        lambda _, now: (
            f"{_percent(now)} of the trained tokens have advantages of one sign: everything is pushed one way"
        ),
        "People look at a few groups' rewards, at length and format penalties, and at filters that drop one kind.",
        _one_sided,
    ),
    Watcher(
        "one_task_dominates",
        "largest_task_share",
        lambda _, now: now >= 0.5,
        lambda _, now: f"{_percent(now)} of a batch are episodes of a single task",
        "People take more tasks, or look why the groups of all others are filtered (Tasks shows their pass rates).",
        _largest_task,
    ),
    Watcher(
        "no_signal",
        "replay.filtered.no_signal",
        lambda _, now: now > 0.9,
        lambda _, now: f"{_percent(now)} of the episodes are in groups whose members are all equal, and teach nothing",
        "People take easier tasks (or harder ones, if all are solved), larger groups, or fine-tune by rejection first.",
        _without_signal,
    ),
    Watcher(
        "format_errors",
        "actors.format_errors",
        lambda _, now: now > 0.1,
        lambda _, now: f"{_percent(now)} of the turns cannot be read as a command",
        "People fine-tune by rejection first, check the chat template, or change the scaffold.",
        _unread_share,
    ),
    Watcher(
        "infrastructure_fails",
        "actors.episodes_failed",
        lambda _, now: now > 0.1,
        lambda _, now: f"{_percent(now)} of the episodes fail by infrastructure and are run again",
        "Look at the logs of the sandbox actors: `actors.failed_*` names the cause.",
        _failed_share,
    ),
)


def reward_falls(seen: Seen) -> Finding | None:
    """To less than half of the best it was."""
    series = smooth(series_of(seen.steps, "reward_mean"))
    if len(series) < FEWEST:
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


def reward_alone_rises(seen: Seen) -> Finding | None:
    """By a tenth and more since the first held-out score, while the scores stay where they were."""
    reward = dict(smooth(series_of(seen.steps, "reward_mean")))
    scores = [(step, score) for step, score in seen.held_out if step in reward]
    if len(scores) < 3:
        return None
    (first_step, first), *later = scores
    gain = reward[later[-1][0]] - reward[first_step]
    if gain < 0.1 or max(score for _, score in later) > first + 0.2 * gain:
        return None
    return Finding(
        "reward_without_gain",
        f"Reward rose by {gain:.2f}, the held-out score by {later[-1][1] - first:+.2f}",
        later[0][0],
        "People read rewarded episodes (longhaul review), look for tampering and for tasks that were learned by heart, "
        "and take more tasks.",
        "reward_mean",
    )


def one_source_dominates(seen: Seen) -> Finding | None:
    """A source gives nine tenths of what is trained on, where there are several."""
    series, name = [], ""
    for sample in seen.samples:
        trained = {key: value for key, value in sample.items() if key.startswith("replay.trained.")}
        if len(trained) > 1 and sum(trained.values()) >= 64:
            name = max(trained, key=lambda key: trained[key])
            series.append((int(sample.get("step", 0)), trained[name] / sum(trained.values())))
    since = since_when(series, lambda _, now: now > 0.9)
    if since is None:
        return None
    return Finding(
        "one_source_dominates",
        f"{_percent(now_of(series))} of what is trained on comes from {name.removeprefix('replay.trained.')}",
        since,
        "People weigh the sources anew, or drop tasks that are always solved.",
        name,
    )


OTHERS = (reward_falls, reward_alone_rises, one_source_dominates)
