"""What the episodes of one sandbox actor are doing, have done, and where their time went: counters, no clockwork."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Literal, get_args

from protocol.errors import LonghaulError
from protocol.messages import Trajectory

State = Literal["queued", "starting", "generating", "executing", "grading", "submitting"]
"""queued: waits for its turn to start a sandbox or to be graded."""


class Board:
    """Every running episode is in one state; leaving a state adds the time spent there to the state's seconds.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now: dict[str, tuple[State, float]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._ended: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._drift: Counter[str] = Counter()
        self._totals: defaultdict[str, float] = defaultdict(float)
        self.replay_waits_s = 0.0
        """Seconds in which there was room for episodes and the replay buffer gave none."""

    def enter(self, episode_id: str, state: State) -> None:
        """The episode now does this."""
        self.leave(episode_id)
        self._now[episode_id] = (state, self._clock())

    def leave(self, episode_id: str) -> None:
        """The episode does nothing any more."""
        if episode_id in self._now:
            state, since = self._now.pop(episode_id)
            self._seconds[state] += self._clock() - since

    def finished(self, trajectory: Trajectory) -> None:
        """An episode was run through and its trajectory is delivered."""
        self._ended[trajectory.end_reason] += 1
        self._totals["reward"] += trajectory.reward
        self._totals["turns"] += len(trajectory.turns)
        self._totals["tokens"] += int(trajectory.loss_mask.sum())
        self._totals["format_errors"] += sum(turn.format_error for turn in trajectory.turns)
        self._totals["tampered"] += trajectory.tampered
        self._totals["branches"] += len(trajectory.branches.leaves())
        self._drift.update(trajectory.drift)

    def scored(self) -> None:
        """An episode of an evaluation was run through: figures of training are not made of it."""
        self._totals["held_out"] += 1

    def failed(self, error: LonghaulError) -> None:
        """An episode could not be run through."""
        self._failed[error.label] += 1

    def went_on(self) -> None:
        """An episode that an earlier process left half done goes on."""
        self._totals["went_on"] += 1

    def dropped(self) -> None:
        """The replay buffer no longer wants an episode: its lease ran out."""
        self._totals["dropped"] += 1

    def metrics(self) -> dict[str, float]:
        """All figures by metric name: episodes, seconds by state, ends by reason, failures by label, drift by cause."""
        running = Counter(state for state, _ in self._now.values())
        now = self._clock()
        seconds = self._seconds.copy()
        for state, since in self._now.values():
            seconds[state] += now - since
        finished = sum(self._ended.values())
        figures = {
            "episodes_running": len(self._now),
            "episodes_finished": finished,
            "episodes_failed": sum(self._failed.values()),
            "episodes_dropped": self._totals["dropped"],
            "episodes_continued": self._totals["went_on"],
            "episodes_held_out": self._totals["held_out"],
            "episodes_tampered": self._totals["tampered"],
            "sampled_tokens": self._totals["tokens"],
            "format_errors": self._totals["format_errors"],
            "seconds_waiting_for_leases": self.replay_waits_s,
        }
        figures |= {f"episodes_{state}": running[state] for state in get_args(State)}
        figures |= {f"seconds_{state}": seconds[state] for state in get_args(State)}
        figures |= {f"ended_{reason}": count for reason, count in self._ended.items()}
        figures |= {f"drift_tokens_{cause}": count for cause, count in self._drift.items()}
        figures |= {f"failed_{label.replace('.', '_')}": count for label, count in self._failed.items()}
        if finished:
            figures |= {"reward_mean": self._totals["reward"] / finished}
            figures |= {"turns_mean": self._totals["turns"] / finished}
            figures |= {"branches_mean": self._totals["branches"] / finished}
        return {name: float(value) for name, value in figures.items()}
