"""Names and deadlines of leases."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

EXPIRED = "lease.expired"
"""Kind under which attempts are counted whose actor fell silent."""
_LEASE_ID = re.compile(r"g(\d{1,18})/(\d{1,6})#(\d{1,6})")


class Attempt(NamedTuple):
    """One try at one member of a group: what a lease id names. Attempts count from 1."""

    group: int
    member: int
    number: int

    @property
    def lease_id(self) -> str:
        """Its name on the wire."""
        return f"g{self.group}/{self.member}#{self.number}"

    @property
    def episode_id(self) -> str:
        """What stays the same over the attempts of a member."""
        return f"g{self.group}/{self.member}"

    @property
    def group_id(self) -> str:
        """The group's name on the wire."""
        return f"g{self.group}"


def parse_lease_id(name: str) -> Attempt | None:
    """The attempt that a lease id names, or None if it names none."""
    match = _LEASE_ID.fullmatch(name)
    return Attempt(int(match[1]), int(match[2]), int(match[3])) if match else None


class Deadlines:
    """Until when each running attempt must be heard of again. Extending one costs O(1), expiring one O(log n)."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._at: dict[Attempt, float] = {}
        self._queue: list[tuple[float, Attempt]] = []  # may be early, for attempts that were extended since

    def __getitem__(self, attempt: Attempt) -> float:
        return self._at[attempt]

    def begin(self, attempt: Attempt, now: float) -> None:
        """A lease was given."""
        self._at[attempt] = now + self._lease_s
        heapq.heappush(self._queue, (now + self._lease_s, attempt))

    def extend(self, attempt: Attempt, now: float) -> None:
        """A running lease was heard of."""
        self._at[attempt] = now + self._lease_s

    def expired(self, now: float, is_running: Callable[[Attempt], bool]) -> Iterator[Attempt]:
        """Running attempts whose deadline has passed; they and those that ended meanwhile are forgotten."""
        while self._queue and self._queue[0][0] <= now:
            _, attempt = heapq.heappop(self._queue)
            if not is_running(attempt):
                self._at.pop(attempt, None)
            elif self._at[attempt] > now:
                heapq.heappush(self._queue, (self._at[attempt], attempt))
            else:
                del self._at[attempt]
                yield attempt
