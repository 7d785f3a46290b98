"""`metrics.jsonl` as it grows: every optimizer step, and so many samples of the system as a screen can show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_SYSTEM_HEAD = re.compile(rb'\{"kind": "system", "time": ([\d.]+)')
_MOST_SAMPLES = 2000
_BLOCK = 8 << 20
_MOST = 1e30  # what is more is no measurement, and no plot holds it

Line = Mapping[str, float]


class Metrics:
    """The lines of one file; `update` reads what is new.

    Attributes:
        steps: by number; one that was trained again by a later life counts once, as that life did it.
        samples: of the system, thinned when they become many.
        newest: the last sample of the system.
        revision: grows whenever something was read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.revision = 0
        self._begin()

    def _begin(self) -> None:
        self.steps: dict[int, Line] = {}
        self.samples: list[Line] = []
        self.newest: Line = {}
        self._done = 0
        self._gap = 0.0  # least seconds between two samples that are kept

    def update(self) -> bool:
        """Read on. Whether there was anything new."""
        before, last_system = self._done, b""
        for line in self._new_lines():
            head = _SYSTEM_HEAD.match(line)
            if head is None:
                self._add(line)
                continue
            last_system = line
            if not self.samples or float(head[1]) - self.samples[-1]["time"] >= self._gap:  # most are not even read
                self._add(line)
        if last_system and (values := _values(last_system)):
            self.newest = values[1]
        self.revision += self._done != before
        return self._done > before

    @property
    def records(self) -> list[Line]:
        """The steps in their order."""
        return [self.steps[number] for number in sorted(self.steps)]

    @property
    def last_time(self) -> float:
        """When anything was written last, seconds since the epoch; 0: never."""
        steps = max((record["time"] for record in self.steps.values()), default=0.0)
        return max(self.newest.get("time", 0.0), steps)

    def _new_lines(self) -> Iterator[bytes]:
        try:
            size = self.path.stat().st_size
        except OSError:
            return
        if size < self._done:  # another file
            self._begin()
        with self.path.open("rb") as file:
            file.seek(self._done)
            rest = b""
            while block := file.read(_BLOCK):
                *lines, rest = (rest + block).split(b"\n")
                self._done = file.tell() - len(rest)
                yield from lines

    def _add(self, line: bytes) -> None:
        found = _values(line)
        if found is None:
            return
        kind, values = found
        if kind == "step" and "step" in values:
            self.steps[int(values["step"])] = values
        elif kind == "system":
            self.samples.append(values)
            if len(self.samples) > _MOST_SAMPLES:
                self.samples = self.samples[::2]
                self._gap = (self.samples[-1]["time"] - self.samples[0]["time"]) / (_MOST_SAMPLES / 2)


def _values(line: bytes) -> tuple[str, Line] | None:
    """Kind and finite numbers of a line; None if it is no line of metrics."""
    try:
        read: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or read.get("kind") not in ("step", "system"):
        return None
    numbers = {str(name): float(value) for name, value in read.items() if isinstance(value, int | float)}
    finite = {name: value for name, value in numbers.items() if abs(value) < _MOST}  # false for NaN, too
    return (read["kind"], finite) if "time" in finite else None
