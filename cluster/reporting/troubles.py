"""What goes wrong while a run works, told once: outages, and tasks that are set aside."""

from __future__ import annotations

from learner.replay.service.account import News

_MOST_TASKS_NAMED = 10


class Troubles:
    """Turns the buffer's news into lines for a person."""

    def __init__(self) -> None:
        self._outage_since: float | None = None
        self._set_aside: set[str] = set()

    def lines(self, news: News, now: float) -> list[str]:
        """What is new at `now` (seconds)."""
        said: list[str] = []
        if news.outage and self._outage_since is None:
            self._outage_since = now
            said.append(f"{news.outage}. The run waits, and tries now and then")
        elif not news.outage and self._outage_since is not None:
            said.append(f"it works again, after {now - self._outage_since:.0f} s")
            self._outage_since = None
        new = [task for task in news.set_aside if task not in self._set_aside]
        for task in new:
            self._set_aside.add(task)
            if len(self._set_aside) <= _MOST_TASKS_NAMED:
                said.append(f"task {task!r} is set aside: {news.set_aside[task]}")
            elif len(self._set_aside) == _MOST_TASKS_NAMED + 1:
                said.append("more tasks are set aside: audit.json will name them all")
        return said
