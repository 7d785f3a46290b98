"""How fast the replay server answers: submissions a second and the time of a lease's answer, over the last while."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 10.0
_MOST_LEASES = 4096


class Speed:
    """Counts what was answered. Times are seconds of one clock that never goes back."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._submissions: deque[float] = deque()
        self._lease_s: deque[tuple[float, float]] = deque(maxlen=_MOST_LEASES)

    def submission(self, now: float) -> None:
        """A submission was acknowledged."""
        self._submissions.append(now)
        self._forget(now)

    def lease(self, received: float, now: float) -> None:
        """A request for leases was answered."""
        self._lease_s.append((now, now - received))

    def measure(self, now: float) -> dict[str, float]:
        """Over the last ten seconds; a quantile of nothing is 0."""
        self._forget(now)
        lease_s = sorted(seconds for at, seconds in self._lease_s if at > now - _WINDOW_S)
        return {
            "submissions_per_s": len(self._submissions) / min(max(now - self._began, 1.0), _WINDOW_S),
            "lease_p50_ms": _quantile(lease_s, 0.5) * 1000,
            "lease_p99_ms": _quantile(lease_s, 0.99) * 1000,
        }

    def _forget(self, now: float) -> None:
        while self._submissions and self._submissions[0] <= now - _WINDOW_S:
            self._submissions.popleft()


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
