"""`tasks.json`: how every task of the run stands with the buffer, for people."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from learner.replay.curriculum import PassRate
from learner.replay.machine import Replay

FILE = "tasks.json"
EVERY_S = 30.0


class TaskState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Over all of its episodes, those that were not recorded included."""

    runs: int
    resolved: int
    chance: float | None = None  # that the curriculum's next draw gives it; None: nothing is drawn (an evaluation)
    trained: int = 0  # episodes
    trouble: str = ""  # why it was set aside, or why an episode of it has no trajectory


def states(replay: Replay) -> dict[str, TaskState]:
    """By task."""
    state, curriculum = replay.state, replay.ledger.curriculum
    found = {}
    for task in replay.ledger.tasks:
        seen = state.rates.get(task, PassRate())
        found[task] = TaskState(
            runs=seen.num_runs,
            resolved=seen.num_resolved,
            chance=None if curriculum is None else curriculum.chance(task),
            trained=state.audit.trained_tasks.get(task, 0),
            trouble=state.set_aside.get(task) or state.audit.short.get(task, ""),
        )
    return found


def write(run_dir: Path, replay: Replay) -> None:
    """Replace the file as a whole."""
    new = run_dir / f".{FILE}"
    new.write_bytes(msgspec.json.encode(states(replay)))
    new.replace(run_dir / FILE)
