"""Is it the task, or the place? What failures since the last success say of each sandbox actor. Pure; seconds come in.

A place at which `LEAST_TASKS` distinct tasks have failed with nothing finished in between is out of order: whatever
fails there is not held against tasks, and it gets one lease now and then, to see whether it works again. When no place
is left that works, the run is in an outage. A task's own errors (`task.*`) say nothing of the place.
"""

from __future__ import annotations

from collections import Counter

from msgspec import Struct, field

LEAST_TASKS = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 10.0
_FORGOTTEN_AFTER_S = 120.0
_LONGEST_REASON = 300


class Place(Struct, kw_only=True):
    """One sandbox actor: what failed there since anything last finished there."""

    tasks: set[str] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    reason: str = ""  # of the newest failure
    broken_since: float | None = None
    pause_s: float = _FIRST_PAUSE_S
    next_at: float = 0.0  # when it may be given a lease again, while it is out of order
    heard_at: float = 0.0


class Outage(Struct, frozen=True, kw_only=True):
    """Nothing works anywhere."""

    since: float
    tasks: frozenset[str]  # that failed
    places: int
    kinds: dict[str, int]
    reason: str

    def __str__(self) -> str:
        most = max(self.kinds, key=lambda kind: self.kinds[kind], default="unknown")
        return (
            f"nothing works: {sum(self.kinds.values())} failures over {len(self.tasks)} tasks at {self.places} places, "
            f"most of them {most}; the newest says: {self.reason}"
        )


class Health:
    """Which places work."""

    def __init__(self) -> None:
        self._nothing_works_since: float | None = None
        self._places: dict[str, Place] = {}
        self._doubtful: set[str] = set()

    def heard(self, place: str, now: float) -> None:
        """A place asked for work, or is at it."""
        self._places.setdefault(place, Place()).heard_at = now

    def worked(self, place: str, now: float) -> None:
        """An episode finished there."""
        self._places[place] = Place(heard_at=now)

    def failed(self, place: str, task: str, kind: str, reason: str, now: float, num_tasks: int = LEAST_TASKS) -> bool:
        """An episode failed there; whether that is the place's fault rather than the task's. Where fewer than
        `LEAST_TASKS` tasks may still be drawn (`num_tasks`), so many distinct ones are enough."""
        if is_of_task(kind):
            return False
        at = self._places.setdefault(place, Place(heard_at=now))
        at.tasks.add(task)
        at.kinds[kind] += 1
        at.reason = reason[:_LONGEST_REASON]
        if len(at.tasks) >= max(1, min(LEAST_TASKS, num_tasks)) and at.broken_since is None:
            at.broken_since = at.next_at = now
            self._doubtful |= at.tasks
        return at.broken_since is not None

    def room(self, place: str, wanted: int, now: float) -> int:
        """How many of `wanted` leases a place may be given."""
        at = self._places.get(place)
        if at is None or at.broken_since is None:
            return wanted
        return min(wanted, int(now >= at.next_at))

    def gave(self, place: str, num: int, now: float) -> None:
        """A place was given leases: the next one waits if it is out of order."""
        at = self._places.get(place)
        if num and at is not None and at.broken_since is not None:
            at.next_at = now + at.pause_s
            at.pause_s = min(2 * at.pause_s, _LONGEST_PAUSE_S)

    def pop_doubtful(self) -> set[str]:
        """Tasks that failed at places which have turned out, since the last call, to be out of order."""
        doubtful, self._doubtful = self._doubtful, set()
        return doubtful

    def outage(self, now: float) -> Outage | None:
        """What is known while no place works; None while one does, or may. It has lasted since it was first asked for:
        a place that is out of order for long may outlive one that worked until a moment ago."""
        for name in [name for name, at in self._places.items() if now - at.heard_at > _FORGOTTEN_AFTER_S]:
            del self._places[name]
        broken = [at for at in self._places.values() if at.broken_since is not None]
        if not broken or len(broken) < len(self._places):
            self._nothing_works_since = None
            return None
        if self._nothing_works_since is None:
            self._nothing_works_since = now
        kinds: Counter[str] = Counter()
        for at in broken:
            kinds.update(at.kinds)
        newest = max(broken, key=lambda at: at.broken_since or 0.0)
        return Outage(
            since=self._nothing_works_since,
            tasks=frozenset().union(*(at.tasks for at in broken)),
            places=len(broken),
            kinds=dict(kinds),
            reason=newest.reason,
        )


def is_of_task(kind: str) -> bool:
    """Whether an error's label says by itself that the task is unusable, wherever it is tried."""
    return kind.startswith("task.") or kind == "sandbox.no_image"
