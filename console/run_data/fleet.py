"""The processes of a run: what each does and since when, as the run wrote it, and the end of its log."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from console.run_data.metrics import Line

FILE = "fleet.json"
_STUCK = {"silent": 0, "failed": 0, "starting": 1}  # what a person looks for comes first
_TAIL_BYTES = 64 << 10
_BAD = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|^Traceback |Error: ", re.MULTILINE)


class Doing(NamedTuple):
    """What a process did when the run looked last."""

    host: str
    state: str
    doing: str
    detail: str
    since: float  # seconds since the epoch
    at: float  # as `since`: when the run looked
    restarts: int
    memory_bytes: float

    @property
    def is_stuck(self) -> bool:
        """Whether it does not do what it is for."""
        return self.state in _STUCK


class Process(NamedTuple):
    """One process, by its log."""

    name: str
    size: int
    written_at: float  # seconds since the epoch
    num_bad: int  # lines of its tail that look like errors
    tail: str
    pressure: dict[str, float]  # how full what it watches is, 1 being the most it should be
    now: Doing | None  # None: it is not one of those that the run watches

    @property
    def role(self) -> str:
        """What kind of process it is."""
        return re.sub(r"-\d+$", "", self.name)


def processes(run_dir: Path, newest: Line, num_lines: int = 12) -> list[Process]:
    """All of them; first those that are stuck, then those whose logs end badly."""
    doing = read_doing(run_dir)
    found = [_process(path, newest, num_lines, doing.get(name)) for name, path in sorted(_logs(run_dir).items())]
    return sorted(found, key=lambda p: (_STUCK.get(p.now.state, 2) if p.now else 2, -p.num_bad, p.now is None, p.name))


def read_doing(run_dir: Path) -> dict[str, Doing]:
    """By process, as the run wrote it last; empty where it did not, or where that is something else."""
    try:
        read = json.loads((run_dir / FILE).read_text(encoding="utf-8", errors="replace"))
        return {str(row["name"]): _doing(row, float(read["at"])) for row in read["processes"]}
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return {}


def _doing(row: Mapping[str, Any], at: float) -> Doing:
    host, state, doing, detail = (str(row[name]) for name in ("host", "state", "doing", "detail"))
    return Doing(host, state, doing, detail, float(row["since"]), at, int(row["restarts"]), float(row["memory_bytes"]))


def log_path(run_dir: Path, name: str) -> Path | None:
    """The log of a process by its name; None if it has none. A name is no path."""
    return _logs(run_dir).get(name)


def _logs(run_dir: Path) -> dict[str, Path]:
    return {path.stem: path for path in (run_dir / "logs").glob("*.log") if path.is_file()}


def tail_of(path: Path, num_lines: int, num_bytes: int = _TAIL_BYTES) -> str:
    """The last lines of a file, of its last bytes at most."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - num_bytes, 0))
        text = file.read(num_bytes).decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-num_lines:])


def _process(path: Path, newest: Line, num_lines: int, now: Doing | None) -> Process:
    state = path.stat()
    tail = tail_of(path, 200)
    prefix = f"replay.pressure.{path.stem}."
    pressure = {name.removeprefix(prefix): value for name, value in newest.items() if name.startswith(prefix)}
    shown = "\n".join(tail.splitlines()[-num_lines:])
    return Process(path.stem, state.st_size, state.st_mtime, len(_BAD.findall(tail)), shown, pressure, now)


def placement(run_dir: Path) -> str:
    """Which process is on which host, as the run last wrote it; empty where it did not."""
    try:
        return (run_dir / "placement.txt").read_text(encoding="utf-8", errors="replace")[:_TAIL_BYTES]
    except OSError:
        return ""
