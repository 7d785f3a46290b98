"""`--phase eval`: which tasks it takes, and what it leaves in the run directory.

evaluation.json (every figure), evaluation.md (a table in the shape of papers), predictions.jsonl (for the SWE-bench
harness), risk_coverage.png (how well confidence tells right from wrong; where matplotlib is installed).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.evaluation.scores import Asked, Attempt, Counts, Report, counts_of, make_report, risk_by_coverage, table
from protocol.config import Settings
from protocol.messages import TaskRef

_MAX_NAMED = 20


def with_evaluation_tasks(settings: Settings) -> Settings:
    """`settings` whose tasks are those to be evaluated: `eval.tasks` if given, and of `micro` the held-out split."""
    if settings.phase != "eval":
        return settings
    source = settings.eval.tasks or settings.tasks.source
    changes: dict[str, Any] = {"source": source} | ({"split": "heldout"} if source == "micro" else {})
    mixed = [] if settings.eval.tasks else settings.tasks.sources
    changes["sources"] = [
        each.model_copy(update={"split": "heldout"}) if each.source == "micro" else each for each in mixed
    ]
    return settings.model_copy(update={"tasks": settings.tasks.model_copy(update=changes)})


def write_evaluation(
    run_dir: Path,
    tasks: Sequence[TaskRef],
    model: str,
    num_runs: int | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Report | None:
    """Score the episodes recorded in `run_dir` and write the files above. None when no episode finished: then the two
    that people read say so, and why.

    `num_runs` attempts of each of `tasks` were asked for (None: as many as were made); `reasons` says of a task why it
    could not be run.
    """
    attempts = read_attempts(run_dir, {task.task_id: task for task in tasks})
    num_runs = num_runs or len({attempt.run for attempt in attempts})
    asked = Asked(tasks=tuple(task.task_id for task in tasks), num_runs=num_runs, reasons=reasons or {})
    if not attempts:
        counts = counts_of((), asked)
        written = msgspec.to_builtins(counts, str_keys=True) | {"pass_at_1": None, "pass_at_1_of_all": 0.0}
        (run_dir / "evaluation.json").write_text(json.dumps(written, indent=2))
        (run_dir / "evaluation.md").write_text(f"{_denominators(counts)}\n")
        return None
    report = make_report(attempts, asked=asked)
    (run_dir / "evaluation.json").write_text(json.dumps(msgspec.to_builtins(report, str_keys=True), indent=2))
    (run_dir / "evaluation.md").write_text(_page(model, report))
    _write_predictions(run_dir)
    _plot_risk(attempts, run_dir / "risk_coverage.png")
    return report


def read_attempts(run_dir: Path, tasks: Mapping[str, TaskRef]) -> list[Attempt]:
    """Every finished episode once, also where it was run twice after an interruption. Unknown tasks are left out."""
    by_episode = {record["episode_id"]: record for record in _records(run_dir / "trajectories")}
    return [
        Attempt(
            task_id=record["task_id"],
            repository=tasks[record["task_id"]].repository,
            difficulty=tasks[record["task_id"]].difficulty,
            run=record["member"],
            resolved=record["resolved"],
            turns=record["num_turns"],
            tokens=record["num_tokens"],
            end_reason=record["end_reason"],
            logprob=record["mean_logprob"],
        )
        for record in by_episode.values()
        if record["task_id"] in tasks
    ]


def _records(directory: Path) -> Iterator[dict[str, Any]]:
    """Records of every file, in order; a line that a killed writer left half is skipped."""
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):  # `splitlines` would part a record at U+2028 and its like
            try:
                record = json.loads(line)
            except ValueError:
                continue
            yield record


def _write_predictions(run_dir: Path) -> None:
    by_episode = {record["episode_id"]: record for record in _records(run_dir / "predictions")}
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in by_episode.values()]
    (run_dir / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")


def _page(model: str, report: Report) -> str:
    parts = [table({model: report}), "", _denominators(report)]
    if len(report.by_difficulty) > 1:
        parts += ["", "| difficulty | pass@1 |", "| ---: | ---: |"]
        parts += [f"| {level} | {estimate} |" for level, estimate in report.by_difficulty.items()]
    parts += ["", "| repository | pass@1 |", "| --- | ---: |"]
    parts += [f"| {name} | {estimate} |" for name, estimate in report.by_repository.items()]
    parts += ["", "| episode ended by | episodes |", "| --- | ---: |"]
    parts += [f"| {reason} | {count} |" for reason, count in report.end_reasons.items()]
    return "\n".join(parts) + "\n"


def _denominators(report: Counts) -> str:
    """How many attempts the figures are over, and why the others have no score."""
    said = f"{report.num_attempts} of {report.num_attempts_asked} attempts scored, over {report.num_tasks} of "
    said += f"{report.num_tasks_asked} tasks"
    if report.not_scored:
        said += "; not scored: " + ", ".join(f"{count} ({why})" for why, count in report.not_scored.items())
    if report.tasks_not_scored:
        shown = ", ".join(report.tasks_not_scored[:_MAX_NAMED])
        more = len(report.tasks_not_scored) - _MAX_NAMED
        said += f". Tasks without any score: {shown}" + (f" and {more} more" if more > 0 else "")
    return f"{said}."


def _plot_risk(attempts: Sequence[Attempt], path: Path) -> None:
    """Share of failures left when the agent answers only its most confident episodes, by how many it answers."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    risks = risk_by_coverage([each.logprob for each in attempts], [each.resolved for each in attempts])
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([(i + 1) / len(risks) for i in range(len(risks))], risks, label="answer the most confident")
    axes.axhline(float(risks[-1]), color="gray", linestyle=":", label="answer all")
    axes.set(xlabel="coverage (share of episodes answered)", ylabel="risk (share of them failed)", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=120)
