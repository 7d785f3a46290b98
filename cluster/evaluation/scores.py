"""What an evaluation says: pass@1 with its error, pass@k, tables, and whether confidence tells right from wrong."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from msgspec import Struct

_NUM_DRAWS = 2000


class Attempt(Struct, frozen=True, kw_only=True):
    """One evaluated episode."""

    task_id: str
    repository: str
    difficulty: int
    run: int  # from 0; every run attempts every task once
    resolved: bool
    turns: int
    tokens: int
    end_reason: str
    logprob: float = 0.0  # mean log-prob of the sampled tokens: the policy's confidence


class Estimate(Struct, frozen=True, kw_only=True):
    """A mean and its standard error."""

    mean: float
    se: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.se:.1f}"


class Asked(Struct, frozen=True, kw_only=True):
    """What an evaluation was asked to do, and why some of it has no score."""

    tasks: tuple[str, ...]
    num_runs: int
    reasons: Mapping[str, str] = {}  # task -> why it could not be run


class Counts(Struct, frozen=True, kw_only=True):
    """What an evaluation's figures are over."""

    num_tasks: int  # scored
    num_runs: int  # asked of each task
    num_tasks_asked: int
    num_attempts: int  # scored
    num_attempts_asked: int
    not_scored: dict[str, int]  # attempts by reason
    tasks_not_scored: tuple[str, ...]


class Report(Counts, frozen=True, kw_only=True):
    """All figures of an evaluation. Rates are shares from 0 to 1.

    `pass_at_1` is over what was scored, every task alike, `pass_at_1_of_all` over all that was asked: an attempt
    without a score counts as unresolved there. `interval` holds 95% of the bootstrap's means over tasks. A pass@k that
    no task has the attempts for is None.
    """

    pass_at_1: Estimate
    pass_at_1_of_all: float
    interval: tuple[float, float]
    pass_at_k: dict[int, float | None]
    pass_at_k_tasks: dict[int, int]  # how many tasks have the k attempts that it needs
    by_repository: dict[str, Estimate]
    by_difficulty: dict[int, Estimate]
    turns: float
    tokens: float
    end_reasons: dict[str, int]
    area_under_risk_coverage: float


def pass_at_k(num_attempts: int, num_resolved: int, k: int) -> float:
    """Chance that one of k attempts resolves, unbiased (Chen et al. 2021, arXiv 2107.03374): 1 - C(n - c, k) / C(n, k).

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= num_attempts or not 0 <= num_resolved <= num_attempts:
        raise ValueError(f"expected 1 <= k <= n and 0 <= c <= n, got n={num_attempts}, c={num_resolved}, k={k}")
    return 1.0 - math.comb(num_attempts - num_resolved, k) / math.comb(num_attempts, k)


def pass_at_1(attempts: Sequence[Attempt]) -> Estimate:
    """Mean over tasks of each task's share of resolved attempts, and the standard error over runs.

    Where every run scored every task that is the mean over runs. Where a run ended early it is not: a last run of one
    scored task would weigh as much as a whole one. So runs weigh by their attempts in the error, too: with weights w it
    is sqrt(sum w (share - mean of shares)^2 / (runs - 1)). A single run has the binomial error of its tasks instead.
    """
    mean = fmean(_shares(attempts, lambda attempt: attempt.task_id))
    runs = _group(attempts, lambda attempt: attempt.run)
    if len(runs) == 1:
        return Estimate(mean=mean, se=math.sqrt(mean * (1 - mean) / len(attempts)))
    weights = np.array([len(group) for group in runs.values()]) / len(attempts)
    shares = _shares(attempts, lambda attempt: attempt.run)
    spread = weights @ (shares - weights @ shares) ** 2
    return Estimate(mean=mean, se=math.sqrt(spread / (len(runs) - 1)))


def bootstrap_over_tasks(attempts: Sequence[Attempt]) -> tuple[float, float]:
    """The middle 95% of the mean of tasks' shares, tasks drawn anew with replacement 2,000 times (fixed seed)."""
    shares = _shares(attempts, lambda attempt: attempt.task_id)
    draws = np.random.default_rng(0).integers(len(shares), size=(_NUM_DRAWS, len(shares)))
    low, high = np.quantile(shares[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def counts_of(attempts: Sequence[Attempt], asked: Asked) -> Counts:
    """How much was asked, how much of it is scored, and why the rest is not."""
    scored = Counter(attempt.task_id for attempt in attempts)
    reasons: Counter[str] = Counter()
    for task in asked.tasks:
        reasons[asked.reasons.get(task, "no episode of it ended")] += max(0, asked.num_runs - scored[task])
    return Counts(
        num_tasks=len(scored),
        num_runs=asked.num_runs,
        num_tasks_asked=len(asked.tasks),
        num_attempts=len(attempts),
        num_attempts_asked=max(len(asked.tasks) * asked.num_runs, len(attempts)),
        not_scored={reason: count for reason, count in reasons.most_common() if count},
        tasks_not_scored=tuple(task for task in asked.tasks if task not in scored),
    )


def make_report(attempts: Sequence[Attempt], ks: Iterable[int] = (1, 2, 5, 10), asked: Asked | None = None) -> Report:
    """Every figure of `attempts` (at least one). A pass@k is over the tasks with at least k attempts, and says of how
    many; without `asked` what was scored is all that was asked."""
    if not attempts:
        raise ValueError("an evaluation needs at least one finished episode")
    tasks = _group(attempts, lambda attempt: attempt.task_id)
    asked = asked or Asked(tasks=tuple(tasks), num_runs=len({attempt.run for attempt in attempts}))
    counts = counts_of(attempts, asked)
    enough = {k: [g for g in tasks.values() if len(g) >= k] for k in sorted(set(ks)) if k <= asked.num_runs}
    risks = risk_by_coverage([a.logprob for a in attempts], [a.resolved for a in attempts])
    return Report(
        **{name: getattr(counts, name) for name in counts.__struct_fields__},
        pass_at_1=pass_at_1(attempts),
        pass_at_1_of_all=sum(attempt.resolved for attempt in attempts) / counts.num_attempts_asked,
        interval=bootstrap_over_tasks(attempts),
        pass_at_k={
            k: fmean(pass_at_k(len(group), sum(a.resolved for a in group), k) for group in groups) if groups else None
            for k, groups in enough.items()
        },
        pass_at_k_tasks={k: len(groups) for k, groups in enough.items()},
        by_repository={name: pass_at_1(group) for name, group in _group(attempts, lambda a: a.repository).items()},
        by_difficulty={level: pass_at_1(group) for level, group in _group(attempts, lambda a: a.difficulty).items()},
        turns=fmean(attempt.turns for attempt in attempts),
        tokens=fmean(attempt.tokens for attempt in attempts),
        end_reasons=dict(Counter(attempt.end_reason for attempt in attempts).most_common()),
        area_under_risk_coverage=float(risks.mean()),
    )


def _group(attempts: Sequence[Attempt], key: Callable[[Attempt], Any]) -> dict[Any, list[Attempt]]:
    groups: dict[Any, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        groups[key(attempt)].append(attempt)
    return dict(sorted(groups.items(), key=lambda item: str(item[0])))


def _shares(attempts: Sequence[Attempt], key: Callable[[Attempt], Any]) -> np.ndarray:
    """Of each group, the share of resolved attempts; float64 [groups]."""
    return np.array([fmean(attempt.resolved for attempt in group) for group in _group(attempts, key).values()])


def risk_by_coverage(confidence: Sequence[float], resolved: Sequence[bool]) -> np.ndarray:
    """Share of failures among the i + 1 most confident episodes; float64 [episodes].

    It is what remains when the agent abstains on all others: falling towards the left means that confidence tells.
    Equal confidences are taken together, so the order of the input does not matter.
    """
    values = np.asarray(confidence, float)
    order = np.argsort(-values, kind="stable")
    values, failed = values[order], 1.0 - np.asarray(resolved, float)[order]
    _, starts, counts = np.unique(-values, return_index=True, return_counts=True)
    shared = np.concatenate([np.full(n, failed[s : s + n].mean()) for s, n in zip(starts, counts, strict=True)])
    running: np.ndarray = np.cumsum(shared) / np.arange(1, len(shared) + 1)
    return running


def table(reports: Mapping[str, Report]) -> str:
    """A Markdown table with one row a model, in the shape that papers use: percentages, pass@1 with its error over runs
    and its interval over tasks, pass@1 over all that was asked. A pass@k over fewer tasks says of how many."""
    ks = sorted({k for report in reports.values() for k in report.pass_at_k if k > 1})
    header = ["model", "tasks", "runs", "pass@1", "95% over tasks", "pass@1 of all asked"]
    header += [*(f"pass@{k}" for k in ks), "turns", "tokens"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, report in reports.items():
        more = [_of_some(report, k) if k in report.pass_at_k else "" for k in ks]
        counts = [f"{report.num_tasks} of {report.num_tasks_asked}", str(report.num_runs)]
        low, high = report.interval
        of_all = [f"{100 * low:.1f} to {100 * high:.1f}", f"{100 * report.pass_at_1_of_all:.1f}"]
        rows.append(
            [name, *counts, str(report.pass_at_1), *of_all, *more, f"{report.turns:.1f}", f"{report.tokens:.0f}"]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _of_some(report: Report, k: int) -> str:
    value, num = report.pass_at_k[k], report.pass_at_k_tasks[k]
    shown = "none" if value is None else f"{100 * value:.1f}"
    return shown if num == report.num_tasks_asked else f"{shown} ({num} of {report.num_tasks_asked} tasks)"
