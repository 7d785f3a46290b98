"""Which parts of a run no longer get on, though nothing says that they died. Pure; seconds come in.

    any part      it has said nothing of itself for `stuck_after_s` (stopped, or its loop is stuck)
    a generator   requests were running at every answer, and no token came, for `stuck_after_s`
    a learner     its step takes `stuck_after_s` longer than `step_timeout_s`, after which a collective names who hung

Only time in which the watcher itself looked is counted: one that was stopped, or slept with its machine, finds nobody
stuck when it wakes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import NamedTuple

from protocol.metrics import Values

_HOUR_S = 3600.0
_LONGEST_LOOK_S = 15.0
"""Most that counts of the time between two looks."""


class Signs(NamedTuple):
    """What a part shows of itself."""

    role: str
    answered_at: float  # when it last said its status: any number that moves with it
    status: Values
    may_be_silent: bool = False  # somebody else decides what its silence means


class _Watched:
    """What is remembered of one part."""

    def __init__(self, signs: Signs) -> None:
        self.answered_at = signs.answered_at
        self.silent_s = 0.0
        self.tokens = _tokens(signs)
        self.tokenless_s = 0.0

    def look(self, signs: Signs, passed_s: float) -> None:
        self.silent_s += passed_s
        if signs.answered_at == self.answered_at:
            if signs.may_be_silent:
                self.silent_s = 0.0
            return
        tokens = _tokens(signs)
        self.tokenless_s = self.tokenless_s + self.silent_s if tokens is not None and tokens == self.tokens else 0.0
        self.answered_at, self.silent_s, self.tokens = signs.answered_at, 0.0, tokens


class Vigil:
    """Watches parts by what they say of themselves.

    Args:
        stuck_after_s: patience.
        step_timeout_s: longest step of a learner.
    """

    def __init__(self, stuck_after_s: float, step_timeout_s: float) -> None:
        self._stuck_after_s, self._step_timeout_s = stuck_after_s, step_timeout_s
        self._watched: dict[str, _Watched] = {}
        self._looked_at: float | None = None

    def look(self, parts: Mapping[str, Signs], now: float) -> dict[str, str]:
        """What is wrong with parts at `now`, in words, by their names. Who is found, or missing, begins anew."""
        passed_s = min(now - self._looked_at, _LONGEST_LOOK_S) if self._looked_at is not None else 0.0
        self._looked_at = now
        self._watched = {name: found for name, found in self._watched.items() if name in parts}
        stuck = {}
        for name, signs in parts.items():
            if name not in self._watched:
                self._watched[name] = _Watched(signs)
                continue
            self._watched[name].look(signs, passed_s)
            if said := self._trouble(signs, self._watched[name]):
                stuck[name] = said
                del self._watched[name]
        return stuck

    def _trouble(self, signs: Signs, watched: _Watched) -> str:
        if watched.silent_s > self._stuck_after_s:
            return f"it has said nothing for {watched.silent_s:.0f} s"
        if watched.tokenless_s > self._stuck_after_s:
            return f"{signs.status['running']:.0f} requests run, and no token came for {watched.tokenless_s:.0f} s"
        step_s = signs.status.get("running_step_s_max", 0.0)
        if signs.role == "learner" and step_s > self._step_timeout_s + self._stuck_after_s:
            return f"its step has been running for {step_s:.0f} s"
        return ""


def _tokens(signs: Signs) -> float | None:
    """Sampled so far; None where nothing is to be sampled."""
    is_sampling = signs.role == "generator" and signs.status.get("running", 0.0) > 0
    return signs.status.get("generated_tokens", 0.0) if is_sampling else None


class Restarts:
    """How often each part may be started again: `most` in any hour."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._at: defaultdict[str, deque[float]] = defaultdict(deque)

    def take(self, name: str, now: float) -> bool:
        """Whether the part may be started again now; then it counts."""
        at = self._at[name]
        while at and now - at[0] > _HOUR_S:
            at.popleft()
        if len(at) >= self._most:
            return False
        at.append(now)
        return True
