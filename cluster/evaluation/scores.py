"""What an evaluation says: pass@1 with its error, pass@k, tables, and whether confidence tells right from wrong."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
from msgspec import Struct


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


class Report(Struct, frozen=True, kw_only=True):
    """All figures of an evaluation. Rates are shares from 0 to 1."""

    num_tasks: int
    num_runs: int
    pass_at_1: Estimate
    pass_at_k: dict[int, float]
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
    """Mean over runs of each run's share of resolved tasks; the error is that of the mean over runs.

    A single run has the binomial error of its tasks instead.
    """
    runs: dict[int, list[bool]] = defaultdict(list)
    for attempt in attempts:
        runs[attempt.run].append(attempt.resolved)
    shares = [fmean(resolved) for resolved in runs.values()]
    mean = fmean(shares)
    if len(shares) > 1:
        return Estimate(mean=mean, se=stdev(shares) / math.sqrt(len(shares)))
    return Estimate(mean=mean, se=math.sqrt(mean * (1 - mean) / len(attempts)))


def make_report(attempts: Sequence[Attempt], ks: Iterable[int] = (1, 2, 5, 10)) -> Report:
    """Every figure of `attempts` (at least one). A pass@k is given where every task has at least k attempts."""
    if not attempts:
        raise ValueError("an evaluation needs at least one finished episode")
    tasks = _group(attempts, lambda attempt: attempt.task_id)
    fewest = min(map(len, tasks.values()))
    risks = risk_by_coverage([a.logprob for a in attempts], [a.resolved for a in attempts])
    return Report(
        num_tasks=len(tasks),
        num_runs=len({attempt.run for attempt in attempts}),
        pass_at_1=pass_at_1(attempts),
        pass_at_k={
            k: fmean(pass_at_k(len(group), sum(a.resolved for a in group), k) for group in tasks.values())
            for k in sorted(set(ks))
            if k <= fewest
        },
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
    """A Markdown table with one row a model, in the shape that papers use: percentages, pass@1 with its error."""
    ks = sorted({k for report in reports.values() for k in report.pass_at_k if k > 1})
    header = ["model", "tasks", "runs", "pass@1", *(f"pass@{k}" for k in ks), "turns", "tokens"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, report in reports.items():
        more = [f"{100 * report.pass_at_k[k]:.1f}" if k in report.pass_at_k else "" for k in ks]
        counts = [str(report.num_tasks), str(report.num_runs)]
        rows.append([name, *counts, str(report.pass_at_1), *more, f"{report.turns:.1f}", f"{report.tokens:.0f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
