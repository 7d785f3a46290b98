"""What goes wrong while a run works, told once: outages, and tasks that are set aside, or tried again."""

from __future__ import annotations

from learner.replay.service.account import News

_MOST_TASKS_NAMED = 10


class Troubles:
    """Turns the buffer's news into lines for a person."""

    def __init__(self) -> None:
        self._outage_since: float | None = None
        self._paused_since: float | None = None
        self._set_aside: set[str] = set()  # as far as was said
        self._num_named = 0

    def lines(self, news: News, now: float) -> list[str]:
        """What is new at `now` (seconds)."""
        said: list[str] = []
        if news.outage and self._outage_since is None:
            self._outage_since = now
            said.append(f"{news.outage}. The run waits, and tries now and then")
        elif not news.outage and self._outage_since is not None:
            said.append(f"it works again, after {now - self._outage_since:.0f} s")
            self._outage_since = None
        if news.paused and self._paused_since is None:
            self._paused_since = now
            said.append(f"no episode is leased: {news.paused}. The run waits for room")
        elif not news.paused and self._paused_since is not None:
            said.append(f"episodes are leased again, after {now - self._paused_since:.0f} s")
            self._paused_since = None
        new = [task for task in news.set_aside if task not in self._set_aside]
        for task in new:
            self._set_aside.add(task)
            self._num_named += 1
            if self._num_named <= _MOST_TASKS_NAMED:
                said.append(f"task {task!r} is set aside: {news.set_aside[task]}")
            elif self._num_named == _MOST_TASKS_NAMED + 1:
                said.append("more tasks are set aside: audit.json will name them all")
        if not news.outage and (back := self._set_aside - news.set_aside.keys()):  # in one they come and go
            self._set_aside -= back
            said.append(f"it was not the tasks: {len(back)} that were set aside are tried again")
        return said
