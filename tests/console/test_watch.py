"""Watchers against made curves: what they see, since which step, and what leaves them silent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from console.watchers.watch import OTHERS, WATCHERS, watch

Line = dict[str, float]


def steps(**curves: Callable[[int], float]) -> list[Line]:
    """40 steps whose metrics are functions of the number."""
    return [{"step": n} | {name: curve(n) for name, curve in curves.items()} for n in range(1, 41)]


HEALTHY = {
    "entropy_mean": lambda n: 0.8 - 0.005 * n,
    "fresh_mismatch_abs_mean": lambda n: 0.001,
    "clipped_low_share": lambda n: 0.01,
    "clipped_high_share": lambda n: 0.02,
    "effective_sample_share": lambda n: 0.97,
    "trajectory_tokens_mean": lambda n: 2000 + 10.0 * n,
    "gradient_norm": lambda n: 0.5,
    "reward_mean": lambda n: n / 50,
    "positive_advantage_share": lambda n: 0.5,
    "largest_task_share": lambda n: 0.25,
    "num_groups": lambda n: 8,
}


def falls(at: int, before: float, after: float) -> Callable[[int], float]:
    return lambda n: before if n < at else after


@pytest.mark.parametrize(
    ("name", "metric", "curve"),
    [
        ("entropy_falls", "entropy_mean", falls(20, 0.9, 0.1)),
        ("entropy_explodes", "entropy_mean", falls(20, 0.3, 2.0)),
        ("mismatch_grows", "fresh_mismatch_abs_mean", falls(20, 0.001, 0.05)),
        ("much_is_clipped", "clipped_high_share", falls(20, 0.01, 0.4)),
        ("off_policy", "effective_sample_share", falls(20, 0.9, 0.2)),
        ("longer_episodes", "trajectory_tokens_mean", falls(20, 1000, 4000)),
        ("shorter_episodes", "trajectory_tokens_mean", falls(20, 1000, 200)),
        ("gradients_explode", "gradient_norm", falls(20, 0.5, 90)),
        ("reward_falls", "reward_mean", falls(20, 0.6, 0.1)),
        ("one_sided_advantages", "positive_advantage_share", falls(20, 0.5, 0.99)),
        ("one_sided_advantages", "positive_advantage_share", falls(20, 0.5, 0.01)),
        ("one_task_dominates", "largest_task_share", falls(20, 0.25, 0.75)),
    ],
)
def test_a_change_is_seen_with_its_step_and_nothing_else_is_said(
    name: str, metric: str, curve: Callable[[int], float]
) -> None:
    (finding,) = watch(steps(**HEALTHY | {metric: curve}))
    assert finding.name == name
    assert 20 <= finding.since <= 22  # the median of five follows two steps later
    assert f"since step {finding.since}. " in finding.line


def test_a_healthy_run_is_passed_over() -> None:
    assert watch(steps(**HEALTHY)) == []


@pytest.mark.parametrize("metric", HEALTHY)
@pytest.mark.parametrize("odd", [0.0, 50_000.0])
def test_one_odd_step_says_nothing(metric: str, odd: float) -> None:
    assert watch(steps(**HEALTHY | {metric: lambda n: odd if n == 40 else HEALTHY[metric](n)})) == []


def test_few_steps_and_foreign_lines_say_nothing() -> None:
    assert watch(steps(**HEALTHY | {"entropy_mean": falls(3, 0.9, 0.0)})[:7]) == []
    assert watch([{}, {"step": 1}], [{}]) == []


def test_what_was_but_is_over_is_not_told() -> None:
    assert watch(steps(**HEALTHY | {"entropy_mean": lambda n: 0.05 if 10 < n < 30 else 0.8})) == []


def samples(**curves: Callable[[int], float]) -> list[Line]:
    return [{"step": n // 2} | {name.replace("__", "."): curve(n) for name, curve in curves.items()} for n in range(60)]


@pytest.mark.parametrize(
    ("name", "curves"),
    [
        ("no_signal", {"replay__accepted": lambda n: 64.0 + n, "replay__filtered.no_signal": lambda n: 63.0 + n}),
        (
            "format_errors",
            {
                "actors__episodes_finished": lambda n: 20.0 * n,
                "actors__format_errors": lambda n: 20.0 * n,
                "actors__turns_mean": lambda n: 5.0,
            },
        ),
        (
            "one_source_dominates",
            {"replay__trained.a": lambda n: 100.0 * n, "replay__trained.b": lambda n: 1.0 * n},
        ),
        (
            "infrastructure_fails",
            {"actors__episodes_finished": lambda n: 80.0 + n, "actors__episodes_failed": lambda n: 20.0 + n},
        ),
    ],
)
def test_samples_are_watched_too(name: str, curves: dict[str, Callable[[int], float]]) -> None:
    assert [finding.name for finding in watch([], samples(**curves))] == [name]


def test_reward_that_rises_alone_is_seen_where_checkpoints_were_evaluated() -> None:
    rising = steps(**HEALTHY)
    scores = [(4, 0.30), (12, 0.31), (20, 0.29), (36, 0.30)]
    (finding,) = watch(rising, (), scores)
    assert (finding.name, finding.since) == ("reward_without_gain", 12)
    assert watch(rising, (), scores[:2]) == []  # two scores are no trend
    assert watch(rising, (), [(step, 0.3 + step / 60) for step, _ in scores]) == []
    assert watch(steps(**HEALTHY | {"reward_mean": lambda n: 0.4}), (), scores) == []


def test_a_batch_of_few_groups_may_be_of_one_task() -> None:
    assert watch(steps(**HEALTHY | {"largest_task_share": lambda n: 1.0, "num_groups": lambda n: 2})) == []


def test_every_watcher_is_held_here() -> None:
    names = [watcher.name for watcher in WATCHERS] + [other.__name__ for other in OTHERS]
    assert len(set(names)) == len(names) == 16
