"""The audit that a run wrote at its end, as lines of a table: on the screen, on the Overview, in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "audit.json"
_MOST_NAMED = 5


def read_audit(run_dir: Path) -> list[tuple[str, str]]:
    """Its lines; none where the run wrote none, or something that is no audit."""
    try:
        return rows(json.loads((run_dir / FILE).read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What the table says, line by line."""
    episodes = figures["episodes"]
    zeros = figures["zeros_by_reason"]
    found = [
        ("episodes leased, finished, trained", f"{episodes['leased']}, {episodes['finished']}, {episodes['trained']}"),
        ("episodes run again", _with_parts(episodes["run_again"], episodes["failed_by_kind"])),
        ("failures that a place was to blame for", str(episodes["not_held_against_tasks"])),
        ("rewards of 0", _with_parts(sum(zeros.values()), zeros)),
        ("rewards of 0 that nothing explains", str(figures["fake_zeros"])),
        ("forged rewards caught", str(figures["tampered"])),
        ("test runs that others' work starved, and that were made again", str(figures.get("test_runs_starved", 0))),
        ("second opinions, disagreeing", f"{figures['second_opinions']}, {figures['second_opinion_disagreements']}"),
        ("tasks set aside", _named(figures["tasks_set_aside"], figures["tasks"])),
    ]
    for reason, tasks in figures["tasks_not_trained"].items():
        found.append((f"tasks not trained: {reason}", _named(tasks, figures["tasks"])))
    for row in figures["by_length"]:
        if row["ended_by_a_limit"]:
            of = f"{row['ended_by_a_limit']} of {row['finished']}, {row['trained']} trained"
            found.append((f"ended by a limit, up to {row['tokens_up_to']} tokens", of))
    return found


def _with_parts(total: int, parts: dict[str, int]) -> str:
    most = sorted(parts.items(), key=lambda part: -part[1])[:_MOST_NAMED]
    said = ", ".join(f"{name} {count}" for name, count in most)
    return f"{total} ({said})" if said else str(total)


def _named(tasks: Any, total: int) -> str:
    shown = list(tasks)[:_MOST_NAMED]
    more = f" and {len(tasks) - len(shown)} more" if len(tasks) > len(shown) else ""
    return f"{len(tasks)} of {total}" + (f": {', '.join(shown)}{more}" if shown else "")
