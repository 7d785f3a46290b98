"""What a run amounted to, in a few lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cluster.evaluation.best import Best
from protocol.metrics import Values


def summarise(
    lives: Sequence[tuple[Sequence[Values], Values]],
    seconds: float,
    held_out: Sequence[tuple[int, float]] = (),
    best: Best | None = None,
) -> dict[str, float]:
    """Figures of the whole run.

    Args:
        lives: of each, the record of every optimizer step (a later life may have trained a step again), and the last
            sample of the system's metrics (totals since that life's start).
        seconds: wall time of the run.
        held_out: step and pass@1 of its evaluations, in the order of steps.
        best: its best checkpoint, where that was kept.
    """
    by_number = {record["step"]: record for records, _ in lives for record in records}
    steps = [by_number[number] for number in sorted(by_number)]
    systems = [system for _, system in lives]

    def total(name: str) -> float:
        return sum(system.get(name, 0.0) for system in systems)

    trained = [record for record in steps if not record.get("skipped_batches")]
    figures = {
        "steps": float(len(trained)),
        "seconds": seconds,
        "episodes": total("actors.episodes_finished"),
        "episodes_failed": total("actors.episodes_failed"),
        "episodes_per_s": total("actors.episodes_finished") / seconds,
        "generated_tok_s": total("generator.generated_tokens") / seconds,
    }
    if len(trained) < len(steps):
        figures["skipped_batches"] = float(len(steps) - len(trained))
    if steps:
        fifth = max(1, len(steps) // 5)
        step_s, wait_s = (sum(r.get(key, 0.0) for r in steps) for key in ("step_s", "wait_s"))
        figures |= {
            "reward_first": _mean(steps[:fifth], "reward_mean"),
            "reward_last": _mean(steps[-fifth:], "reward_mean"),
            "learner_tok_s": sum(r.get("tokens", 0.0) for r in steps) / (step_s or 1),
            "learner_wait_share": wait_s / (step_s + wait_s or 1),
        }
    if held_out:
        best_step, highest = max(held_out, key=lambda point: point[1])
        figures |= {
            "held_out_first": held_out[0][1],
            "held_out_last": held_out[-1][1],
            "held_out_best": highest,
            "held_out_best_step": float(best_step),
        }
    if best is not None:
        figures["best_checkpoint_step"] = float(best.step)
    if "generator.wait_share" in systems[-1]:
        figures["generator_wait_share"] = systems[-1]["generator.wait_share"]
    return figures


def print_summary(figures: Values, run_directory: object, checkpoint: object | None, best: Best | None = None) -> None:
    """Show the figures, and where the results lie."""
    table = Table(title="Run", title_justify="left", show_header=False)
    rows = {
        "steps": "optimizer steps",
        "skipped_batches": "batches without a signal, which trained nothing",
        "seconds": "wall time, s",
        "episodes": "episodes finished",
        "episodes_failed": "episodes failed (infrastructure; run again)",
        "reward_first": "reward, first fifth of the steps",
        "reward_last": "reward, last fifth of the steps",
        "held_out_first": "pass@1 on held-out tasks, first evaluation",
        "held_out_last": "pass@1 on held-out tasks, last evaluation",
        "held_out_best": "pass@1 on held-out tasks, best evaluation",
        "held_out_best_step": "version of the best evaluation",
        "episodes_per_s": "episodes/s",
        "generated_tok_s": "generated tokens/s",
        "learner_tok_s": "learner tokens/s",
        "learner_wait_share": "share of time the learner waited for a batch",
        "generator_wait_share": "share of time the generators had nothing to do",
    }
    for key, meaning in rows.items():
        if key in figures:
            table.add_row(meaning, f"{figures[key]:,.3g}" if figures[key] < 1000 else f"{figures[key]:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"run directory  {run_directory}", soft_wrap=True)
    if checkpoint is not None:
        console.print(f"checkpoint     {checkpoint}", soft_wrap=True)
    if best is not None:
        why = f"pass@1 {100 * best.pass_at_1:.1f} on held-out tasks at version {best.version}"
        if best.pass_at_1 < figures.get("held_out_best", 0.0) and not figures["held_out_best_step"]:
            why += "; the model that the run began from had more"
        console.print(f"best           {best.path} ({why})", soft_wrap=True)


def _mean(records: Sequence[Values], key: str) -> float:
    return sum(r[key] for r in records) / len(records)
