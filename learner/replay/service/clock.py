"""Seconds that go on as seconds do, whatever is done to the system's clock."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """Seconds since 1970 as the system's clock had them when this was made; from then on steps of that clock (NTP, a
    person, a machine that was asleep) change nothing. It never goes back."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        self._offset = wall() - steady()

    def __call__(self) -> float:
        """Now."""
        return self._steady() + self._offset
