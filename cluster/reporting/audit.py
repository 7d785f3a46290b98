"""The audit of a run's infrastructure: one table on screen, one file `audit.json`, the same figures in both.

Whether anything that the machinery did looks like something the policy did: zeros that nothing explains, tasks never
trained on, episodes lost to limits by their length, retries, forged rewards, second opinions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from learner.replay.service.account import Account
from protocol.metrics import Values

_MOST_NAMED = 5


def audit_of(account: Account, system: Values) -> dict[str, Any]:
    """Every figure. `system` is the last sample of the run's metrics."""
    audit = account.audit
    lengths = sorted({*audit.finished_by_length, *audit.trained_by_length})
    return {
        "episodes": {
            "leased": account.leased,
            "finished": account.accepted,
            "trained": account.trained,
            "run_again": audit.retries,
            "failed_by_kind": audit.failed_by_kind,
            "not_held_against_tasks": audit.excused,
            "filtered": account.filtered,
            "ended_by": audit.ends,
        },
        "fake_zeros": audit.fake_zeros,
        "zeros_by_reason": {reason or "unexplained": count for reason, count in audit.zeros.items()},
        "tampered": audit.tampered,
        "second_opinions": int(system.get("actors.second_opinions", 0)),
        "second_opinion_disagreements": int(system.get("actors.second_opinion_disagreements", 0)),
        "tasks": account.tasks,
        "tasks_set_aside": account.set_aside,
        "tasks_not_trained": account.not_trained,
        "by_length": [
            {
                "tokens_up_to": length,
                "finished": audit.finished_by_length.get(length, 0),
                "ended_by_a_limit": audit.limited_by_length.get(length, 0),
                "trained": audit.trained_by_length.get(length, 0),
            }
            for length in lengths
        ],
    }


def write_audit(directory: Path, account: Account, system: Values) -> dict[str, Any]:
    """Write `audit.json` of a run directory; what is in it."""
    figures = audit_of(account, system)
    text = json.dumps(msgspec.to_builtins(figures, str_keys=True), indent=2)
    (directory / "audit.json").write_text(text, encoding="utf-8")
    return figures


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


def print_audit(figures: dict[str, Any]) -> None:
    """Show the table."""
    table = Table(title="Infrastructure", title_justify="left", show_header=False)
    for meaning, value in rows(figures):
        table.add_row(meaning, value)
    Console().print(table)


def _with_parts(total: int, parts: dict[str, int]) -> str:
    most = sorted(parts.items(), key=lambda part: -part[1])[:_MOST_NAMED]
    said = ", ".join(f"{name} {count}" for name, count in most)
    return f"{total} ({said})" if said else str(total)


def _named(tasks: Any, total: int) -> str:
    shown = list(tasks)[:_MOST_NAMED]
    more = f" and {len(tasks) - len(shown)} more" if len(tasks) > len(shown) else ""
    return f"{len(tasks)} of {total}" + (f": {', '.join(shown)}{more}" if shown else "")
