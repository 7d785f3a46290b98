"""Bounded staleness by waiting: when a group may be opened, and when a batch may be formed. Pure arithmetic on places.

A batch has `batch` places and there is one batch a step. An open group holds as many places as it has members, a ready
item as many as it fills; what filters remove gives its places back. Two rules keep every trained token within
`max_staleness` versions of the learner without throwing long episodes away:

* admission: `places taken over the run < (served version + max_staleness + 1) * batch`, so at most
  `(w + max_staleness + 1) * batch` places ever belong to groups whose oldest token is of version `w` or older;
* due dates: a group whose oldest token is of version `w` must be in the batch of step `w + max_staleness + 1` at the
  latest. Newer groups may overtake it only while the steps until then still have room for all that are due with it;
  once they do not, the batch waits.

`max_staleness = 0` is the synchronous mode: a version's batch is made of that version's groups alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Places:
    """Places held by open groups and ready items, by the version of their oldest token.

    Args:
        batch: places of one step's batch.
        max_staleness: bound on the learner's version minus the oldest version in a trajectory.
    """

    def __init__(self, batch: int, max_staleness: int) -> None:
        self.batch = batch
        self.max_staleness = max_staleness
        self.open: Counter[int] = Counter()
        self.ready: Counter[int] = Counter()

    @property
    def outstanding(self) -> int:
        """Places held by anything that is not in a batch yet."""
        return self.open.total() + self.ready.total()

    def bound(self, served: int, last_step: int) -> int:
        """Places that may be taken over the whole run while `served` is the version of every generator.

        Nothing is collected past the last step of the run.
        """
        return min(served + self.max_staleness + 1, last_step) * self.batch

    def due(self, oldest: int) -> int:
        """Last step that may train on tokens of version `oldest`."""
        return oldest + self.max_staleness + 1

    def overtaken(self, step: int, chosen: Mapping[int, int]) -> int | None:
        """Which version's open groups would come too late if the batch of `step` were formed now; None: it may be.

        Args:
            step: the step whose batch is about to be formed.
            chosen: places of ready items to be put into it, by version.
        """
        held = 0
        waiting = 0
        for version in sorted(self.open.keys() | self.ready.keys()):
            held += self.open[version] + self.ready[version] - chosen.get(version, 0)
            waiting += self.open[version]
            steps_left = max(self.due(version) - step, 0)
            if waiting and held > steps_left * self.batch:
                return version
        return None


def shift(counter: Counter[int], version: int, places: int) -> None:
    """Add places under a version (or take them away) and forget versions that hold none."""
    counter[version] += places
    assert counter[version] >= 0, f"version {version} holds {counter[version]} places"
    if not counter[version]:
        del counter[version]


class Concurrency:
    """How many episodes run at once: additive increase, multiplicative decrease over everything that can be full.

    Once an interval the fullest thing decides. At or above its mark the limit is cut to `decrease` of what really runs,
    below it the limit grows by `increase` of the most, but only while it is used up: an idle limit learns nothing.

    Args:
        most: episodes that may ever run at once.
        interval_s: time for a change to show its effect before the next one.
    """

    def __init__(self, most: int, interval_s: float = 2.0, decrease: float = 0.75, increase: float = 0.02) -> None:
        self.most = most
        self.limit = most
        self.held_back_by = ""
        self._interval_s = interval_s
        self._decrease = decrease
        self._increase = max(1, round(most * increase))
        self._levels: dict[str, tuple[float, float]] = {}
        self._next_at = self._cut_at = float("-inf")

    def report(self, name: str, level: float, now: float) -> None:
        """Something says how full it is; it counts until it has been silent for ten intervals."""
        self._levels[name] = (level, now)

    def forget_silent(self, now: float) -> None:
        """Drop what has not been heard of."""
        silent = [name for name, (_, at) in self._levels.items() if now - at > 10 * self._interval_s]
        for name in silent:
            del self._levels[name]

    def adjust(self, running: int, now: float) -> None:
        """Move the limit if an interval has passed since it was moved last."""
        if now < self._next_at:
            return
        self._next_at = now + self._interval_s
        self.forget_silent(now)
        fullest = max(self._levels, key=lambda name: self._levels[name][0], default="")
        level, at = self._levels.get(fullest, (0.0, 0.0))
        if level >= 1.0:
            if at > self._cut_at:  # heard after the last cut: that one was not enough
                self.limit = max(1, min(self.limit, int(max(running, 1) * self._decrease)))
                self.held_back_by, self._cut_at = fullest, now
        elif running >= self.limit or self.limit >= self.most:
            self.limit = min(self.most, self.limit + self._increase)
            if self.limit == self.most:
                self.held_back_by = ""

    @property
    def levels(self) -> dict[str, float]:
        """The last reported levels, by name."""
        return {name: level for name, (level, _) in self._levels.items()}
