"""How the replay buffer saw each task last (`tasks.json`): all episodes, recorded or not."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

FILE = "tasks.json"


class TaskState(Struct):
    """One task."""

    runs: int = 0
    resolved: int = 0
    chance: float | None = None  # that the next draw of the curriculum gives it
    trained: int = 0
    trouble: str = ""

    @property
    def solved(self) -> float | None:
        """Share of all its episodes."""
        return self.resolved / self.runs if self.runs > 0 else None


def read_tasks(run_dir: Path) -> dict[str, TaskState]:
    """By task; empty where the run wrote none, or something else."""
    try:
        return msgspec.json.decode((run_dir / FILE).read_bytes(), type=dict[str, TaskState], strict=False)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
