"""A tracker for tests: runs are files of a directory. It can be away, and it can hang."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from cluster.reporting.trackers.tracker import About, Line, Status


class FakeTracker:
    """Keeps each run as `<run>.json`. `trouble` is raised, or waited for, by the next call."""

    def __init__(self, where: str, trouble: list[Exception | threading.Event] | None = None) -> None:
        self._directory = Path(where)
        self._trouble = [] if trouble is None else trouble
        self._run = ""

    def begin(self, about: About, known: str) -> str:
        """See `Tracker`."""
        self._meet_trouble()
        self._directory.mkdir(exist_ok=True)
        self._run = known or f"run-{len(list(self._directory.iterdir()))}"
        self._write(self._lines() if known else [], "RUNNING")
        return self._run

    def send(self, lines: Sequence[Line]) -> None:
        """See `Tracker`."""
        self._meet_trouble()
        self._write([*self._lines(), *lines], "RUNNING")

    def end(self, status: Status) -> None:
        """See `Tracker`."""
        self._meet_trouble()
        self._write(self._lines(), status)

    @property
    def where(self) -> str:
        """See `Tracker`."""
        return f"{self._directory}, {self._run}"

    def _meet_trouble(self) -> None:
        if not self._trouble:
            return
        trouble = self._trouble.pop(0)
        if isinstance(trouble, threading.Event):
            trouble.wait()
        else:
            raise trouble

    def _lines(self) -> list[Line]:
        return [Line(*line) for line in json.loads((self._directory / f"{self._run}.json").read_text())["lines"]]

    def _write(self, lines: Sequence[Line], status: str) -> None:
        """Whoever reads it finds it whole."""
        part = self._directory.with_name(f"{self._directory.name}.part")
        part.write_text(json.dumps({"status": status, "lines": lines}))
        part.replace(self._directory / f"{self._run}.json")
