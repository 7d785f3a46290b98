"""One tracker's thread: it begins, sends what the run writes, tries again, and ends. Whoever started it never waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster.reporting.trackers.following import Follower, Reached, note_reached, reached
from cluster.reporting.trackers.tracker import About, Status, Tracker

SILENT_S = 30.0
"""A call to a tracker that takes longer is said."""
_LOOK_EVERY_S = 1.0
_TRY_AGAIN_S = 10.0
_LONGEST_S = 120.0  # between two tries
_MOST_CHARS = 300


class Sending:
    """Sends the metrics of one run to one tracker.

    Attributes:
        failed: why it does not send at the moment; empty while it does.
        is_done: everything was taken, and the tracker knows that the run has ended.
    """

    def __init__(
        self, about: About, name: str, where: str, open_tracker: Callable[[str], Tracker], say: Callable[[str], None]
    ) -> None:
        self.failed = ""
        self.is_done = False
        self._about, self._name, self._where = about, name, where
        self._open, self._say = open_tracker, say
        self._status: Status = "FINISHED"
        self._over = threading.Event()
        self._called_at: float | None = None  # a call to the tracker is out since then
        self._said_silent = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def end(self, status: Status) -> None:
        """No more lines will come: send what is there, tell the tracker, stop. Does not wait."""
        self._status = status
        self._over.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread, and say it once when the tracker does not answer. Whether it has ended."""
        self._thread.join(timeout_s)
        called_at = self._called_at
        if called_at is not None and time.monotonic() - called_at > SILENT_S and not self._said_silent:
            self._said_silent = True
            self._say(f"{self._name} has not answered for {SILENT_S:.0f} s; {self._later}")
        return not self._thread.is_alive()

    @property
    def _later(self) -> str:
        return f"the run does not wait for it. What it lacks at the end: longhaul track {self._about.directory}"

    def _run(self) -> None:
        """Waits for lines (looks every second), for its next try, or for the end; ends when all is sent, or when a try
        after the end has failed."""
        pause_s = _TRY_AGAIN_S
        while not self.is_done:
            last_try = self._over.is_set()
            try:
                self._send_all()
            except Exception as error:  # whatever a tracker's library raises
                self._called_at = None
                if not self.failed:
                    self._say(f"{self._name} {self._where} takes no metrics ({_brief(error)}); {self._later}")
                self.failed = _brief(error)
                if last_try:
                    return
                self._over.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_S)

    def _send_all(self) -> None:
        """From where it was to the end. Raises whatever the tracker's library raises."""
        directory = self._about.directory
        known = reached(directory, self._name)
        if known.where != self._where:
            known = Reached(self._where)
        tracker = self._open(self._where)
        self._called_at = time.monotonic()
        run = tracker.begin(self._about, known.run)
        follower = Follower(directory / "metrics.jsonl", known.done)
        note_reached(directory, self._name, Reached(self._where, run, follower.done))
        self._say(f"{self._name} answers again" if self.failed else f"{self._name} {tracker.where}")
        self.failed = ""
        while True:
            self._called_at = None
            is_over = self._over.is_set()  # asked first: what is written before the end is read
            lines = follower.read()
            if lines:
                self._called_at = time.monotonic()
                tracker.send(lines)
            note_reached(directory, self._name, Reached(self._where, run, follower.done))
            if is_over and not follower.is_behind:
                break
            if not follower.is_behind:
                self._over.wait(_LOOK_EVERY_S)
        self._called_at = time.monotonic()
        tracker.end(self._status)
        self._called_at = None
        self.is_done = True


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:_MOST_CHARS]


def about(directory: Path) -> About:
    """What there is to say of a run."""
    from console.run_data.run import Run
    from console.run_data.settings import leaves, versions_of

    versions, is_recorded = versions_of(directory)
    settings = dict(leaves(Run.check(directory)))
    return About(directory.resolve().name, directory.resolve(), settings, versions if is_recorded else {})
