"""`metrics.jsonl` from a byte on, and how far each tracker has it: what is not sent is sent later, by whoever comes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cluster.reporting.trackers.tracker import Line

FOLDER = "trackers"
"""In the run directory: of each tracker where it is, its name of the run, the bytes of `metrics.jsonl` that it has."""
SYSTEM_EVERY_S = 10.0
"""Of the samples of the system, one each second, a tracker gets one in so many seconds."""
_BLOCK = 1 << 20
_KINDS = ("step", "system", "eval", "watch")


class Reached(NamedTuple):
    """How far a tracker has a run."""

    where: str = ""  # project or URI
    run: str = ""
    done: int = 0  # bytes


class Follower:
    """Reads on where it was. A line that is no metrics is passed over."""

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        self.done = done if path.exists() and path.stat().st_size >= done else 0  # shorter: another file
        self._sampled_at = -math.inf

    def read(self) -> list[Line]:
        """The lines that were ended since; `done` is then behind them."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.done)
                block = file.read(_BLOCK)
                while b"\n" not in block and (more := file.read(_BLOCK)):
                    block += more
        except FileNotFoundError:
            return []
        whole = block[: block.rfind(b"\n") + 1]
        self.done += len(whole)
        return [line for text in whole.splitlines() if (line := self._line(text)) is not None]

    @property
    def is_behind(self) -> bool:
        """Whether there is more to read."""
        return self.path.exists() and self.path.stat().st_size > self.done

    def _line(self, text: bytes) -> Line | None:
        line = parse(text)
        if line is None or line.kind != "system":
            return line
        if line.time - self._sampled_at < SYSTEM_EVERY_S:
            return None
        self._sampled_at = line.time
        return line


def parse(text: bytes) -> Line | None:
    """Kind, time, step and finite numbers; None if it is no line of metrics."""
    try:
        read: Any = json.loads(text)
        kind, time, step = str(read.pop("kind")), float(read.pop("time")), int(read.pop("step"))
        numbers = {str(n): float(v) for n, v in read.items() if isinstance(v, int | float) and math.isfinite(v)}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return Line(kind, time, step, numbers) if kind in _KINDS and math.isfinite(time) else None


def reached(run_dir: Path, tracker: str) -> Reached:
    """What is known; nothing where nothing, or no sense, is written."""
    try:
        found = json.loads((run_dir / FOLDER / f"{tracker}.json").read_text(encoding="utf-8"))
        return Reached(str(found["where"]), str(found["run"]), max(int(found["done"]), 0))
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return Reached()


def note_reached(run_dir: Path, tracker: str, now: Reached) -> None:
    """Written whole or not at all."""
    path = run_dir / FOLDER / f"{tracker}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(now._asdict(), indent=2), encoding="utf-8")
    partial.replace(path)


@contextlib.contextmanager
def alone(run_dir: Path, tracker: str) -> Iterator[bool]:
    """Whether nobody else sends this run's metrics to this tracker; nobody will inside the block."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / f"{tracker}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
