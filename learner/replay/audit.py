"""What the infrastructure did to a run's episodes, counted by the ledger: nothing of it is lost with a process.

A reward of 0 needs a reason (`Trajectory.zero_because`); one without is a fake zero, a failure of the machinery that
looks like one of the policy. There must be none.
"""

from __future__ import annotations

from typing import TypeVar

from msgspec import Struct, field

from learner.replay.events import Ended, Finished, Leased

K = TypeVar("K", str, int)

_LIMITS = ("max_turns", "context", "wall_time")


class Audit(Struct, kw_only=True):
    """Counts over the whole run. Lengths are classes of tokens, named by their upper bound, a power of two."""

    retries: int = 0  # leases beyond a member's first
    excused: int = 0  # ended attempts that were a place's fault
    tampered: int = 0
    zeros: dict[str, int] = field(default_factory=dict)  # finished episodes without a reward, by reason; "": fake
    ends: dict[str, int] = field(default_factory=dict)  # finished episodes, by what ended them
    finished_by_length: dict[int, int] = field(default_factory=dict)
    limited_by_length: dict[int, int] = field(default_factory=dict)  # those that a limit ended
    trained_by_length: dict[int, int] = field(default_factory=dict)
    failed_by_kind: dict[str, int] = field(default_factory=dict)
    short: dict[str, str] = field(default_factory=dict)  # tasks of which members never finished, and why
    finished_tasks: dict[str, int] = field(default_factory=dict)
    trained_tasks: dict[str, int] = field(default_factory=dict)

    @property
    def fake_zeros(self) -> int:
        """Zeros that nothing explains."""
        return self.zeros.get("", 0)

    def leased(self, event: Leased) -> None:
        """An attempt began."""
        self.retries += event.attempt > 1

    def ended(self, event: Ended) -> None:
        """An attempt ended without a trajectory."""
        self.excused += event.excused
        _count(self.failed_by_kind, event.kind)

    def finished(self, task_id: str, finished: Finished) -> None:
        """A trajectory was accepted."""
        self.tampered += finished.tampered
        if not finished.resolved:
            _count(self.zeros, finished.zero_because)
        _count(self.ends, finished.end_reason)
        _count(self.finished_tasks, task_id)
        _count(self.finished_by_length, length_class(finished.num_tokens))
        if finished.end_reason in _LIMITS:
            _count(self.limited_by_length, length_class(finished.num_tokens))

    def trained(self, task_id: str, finished: Finished) -> None:
        """A trajectory was trained on."""
        _count(self.trained_tasks, task_id)
        _count(self.trained_by_length, length_class(finished.num_tokens))


def length_class(num_tokens: int) -> int:
    """The least power of two that is not below `num_tokens`."""
    return 1 << max(num_tokens - 1, 0).bit_length()


def _count(counts: dict[K, int], key: K) -> None:
    counts[key] = counts.get(key, 0) + 1
