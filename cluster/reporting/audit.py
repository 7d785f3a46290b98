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

from console.run_data.audit import FILE, rows
from learner.replay.service.account import Account
from protocol.metrics import Values


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
        "test_runs_starved": int(system.get("actors.test_runs_starved", 0)),
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
    (directory / FILE).write_text(text, encoding="utf-8")
    return figures


def print_audit(figures: dict[str, Any]) -> None:
    """Show the table."""
    table = Table(title="Infrastructure", title_justify="left", show_header=False)
    for meaning, value in rows(figures):
        table.add_row(meaning, value)
    Console().print(table)
