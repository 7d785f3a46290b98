"""An evaluation that the replay buffer led beside the training: scored, written, and as metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.evaluation.scores import Asked, Attempt, Counts, Report, counts_of, make_report
from learner.held_out import Evaluation
from protocol.messages import TaskRef
from protocol.metrics import Values


def written_versions(run_dir: Path) -> set[int]:
    """Versions whose evaluations lie in the run's directory already."""
    names = [path.parent.name for path in (run_dir / "evaluations").glob("version-*/evaluation.json")]
    return {int(name.removeprefix("version-")) for name in names if name.removeprefix("version-").isdecimal()}


def score(evaluation: Evaluation, tasks: Sequence[TaskRef], num_runs: int) -> Report | Counts:
    """Every figure of an evaluation; `Counts` alone when no episode of it finished.

    `num_runs` attempts of each of `tasks` were asked for.
    """
    known = {task.task_id: task for task in tasks}
    attempts = [
        Attempt(
            task_id=each.task_id,
            repository=known[each.task_id].repository,
            difficulty=known[each.task_id].difficulty,
            run=each.run,
            resolved=each.resolved,
            turns=each.num_turns,
            tokens=each.num_tokens,
            end_reason=each.end_reason,
            logprob=each.mean_logprob,
        )
        for each in evaluation.attempts
        if each.task_id in known
    ]
    asked = Asked(tasks=tuple(known), num_runs=num_runs, reasons=evaluation.reasons)
    return make_report(attempts, asked=asked) if attempts else counts_of((), asked)


def write(run_dir: Path, evaluation: Evaluation, report: Report | Counts) -> Path:
    """`evaluations/version-N/evaluation.json`: the figures of `longhaul eval`, the version from which on tasks were
    attempted, and the oldest and newest version that sampled a token. It is there whole or not at all."""
    path = run_dir / "evaluations" / f"version-{evaluation.version}" / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    oldest, newest = sampled_by(evaluation)
    figures: dict[str, Any] = {"version": evaluation.version, "oldest_version": oldest, "newest_version": newest}
    figures |= msgspec.to_builtins(report, str_keys=True)
    if not isinstance(report, Report):
        figures |= {"pass_at_1": None, "pass_at_1_of_all": 0.0}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=2))
    partial.replace(path)
    return path


def sampled_by(evaluation: Evaluation) -> tuple[int, int]:
    """The oldest and the newest version that sampled a token of it."""
    oldest = min((each.oldest_version for each in evaluation.attempts), default=evaluation.version)
    return oldest, max((each.newest_version for each in evaluation.attempts), default=evaluation.version)


def metrics(evaluation: Evaluation, report: Report | Counts) -> Values:
    """What the curve is made of, by metric name."""
    oldest, newest = sampled_by(evaluation)
    values = {
        "tasks": float(report.num_tasks),
        "episodes": float(report.num_attempts),
        "episodes_asked": float(report.num_attempts_asked),
        "oldest_version": float(oldest),
        "newest_version": float(newest),
    }
    if not isinstance(report, Report):
        return values | {"pass_at_1_of_all": 0.0}
    return values | {
        "pass_at_1": report.pass_at_1.mean,
        "pass_at_1_se": report.pass_at_1.se,
        "pass_at_1_of_all": report.pass_at_1_of_all,
        "turns_mean": report.turns,
        "tokens_mean": report.tokens,
    }


def line(evaluation: Evaluation, report: Report | Counts) -> str:
    """What a person reads of it while the run goes on."""
    oldest, newest = sampled_by(evaluation)
    said = f"held-out tasks at version {evaluation.version}: "
    said += f"pass@1 {report.pass_at_1}" if isinstance(report, Report) else "no score"
    said += f", {report.num_attempts} of {report.num_attempts_asked} attempts"
    return said + (f", sampled by versions {oldest} to {newest}" if newest > oldest else "")
