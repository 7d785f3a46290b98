"""The processes of a run as their logs show them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from console.run_data.metrics import Line

_TAIL_BYTES = 64 << 10
_BAD = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|^Traceback |Error: ", re.MULTILINE)


class Process(NamedTuple):
    """One process, by its log."""

    name: str
    size: int
    written_at: float  # seconds since the epoch
    num_bad: int  # lines of its tail that look like errors
    tail: str
    pressure: dict[str, float]  # how full what it watches is, 1 being the most it should be

    @property
    def role(self) -> str:
        """What kind of process it is."""
        return re.sub(r"-\d+$", "", self.name)


def processes(run_dir: Path, newest: Line, num_lines: int = 12) -> list[Process]:
    """All of them; those whose logs end badly come first."""
    found = [_process(path, newest, num_lines) for path in sorted((run_dir / "logs").glob("*.log"))]
    return sorted(found, key=lambda process: (-process.num_bad, process.name))


def log_path(run_dir: Path, name: str) -> Path | None:
    """The log of a process by its name; None if it has none. A name is no path."""
    known = {path.stem: path for path in (run_dir / "logs").glob("*.log")}
    return known.get(name)


def tail_of(path: Path, num_lines: int, num_bytes: int = _TAIL_BYTES) -> str:
    """The last lines of a file, of its last bytes at most."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - num_bytes, 0))
        text = file.read(num_bytes).decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-num_lines:])


def _process(path: Path, newest: Line, num_lines: int) -> Process:
    state = path.stat()
    tail = tail_of(path, 200)
    prefix = f"replay.pressure.{path.stem}."
    pressure = {name.removeprefix(prefix): value for name, value in newest.items() if name.startswith(prefix)}
    shown = "\n".join(tail.splitlines()[-num_lines:])
    return Process(path.stem, state.st_size, state.st_mtime, len(_BAD.findall(tail)), shown, pressure)


def placement(run_dir: Path) -> str:
    """Which process is on which host, as the run last wrote it; empty where it did not."""
    try:
        return (run_dir / "placement.txt").read_text(encoding="utf-8", errors="replace")[:_TAIL_BYTES]
    except OSError:
        return ""
