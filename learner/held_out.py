"""Evaluation while training: which versions are scored on held-out tasks, and how much of the run it may take. Pure.

The replay buffer leases the episodes of an evaluation beside those that train. They never enter a batch, a filter, the
curriculum or the arithmetic of staleness, and what they may take is bounded (`may_score`): a step waits for no more of
them than one batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct, field

from protocol.messages import EndReason, Trajectory

SHARE = 0.1
"""Of the episodes that run at once, what an evaluation may hold while training could use it."""


class Scored(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One finished episode of an evaluation."""

    task_id: str
    run: int  # from 0; every run attempts every task once
    resolved: bool
    num_turns: int
    num_tokens: int
    end_reason: EndReason
    mean_logprob: float  # of the sampled tokens
    oldest_version: int  # of those that sampled its tokens
    newest_version: int


class Evaluation(Struct, kw_only=True):
    """All held-out tasks, attempted from one version on."""

    version: int  # that was served when it began
    next_task: int = 0  # in the order of the run's held-out tasks
    attempts: list[Scored] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # tasks of which an attempt never finished, and why
    is_over: bool = False

    @property
    def num_resolved(self) -> int:
        """Attempts that resolved their task: over all that was asked, so that an outage makes no best."""
        return sum(attempt.resolved for attempt in self.attempts)


class HeldOut(Struct, kw_only=True):
    """What the buffer remembers of evaluations."""

    evaluations: dict[int, Evaluation] = field(default_factory=dict)  # by version, in the order they began
    leased: int = 0  # episodes of evaluations since the newest batch was formed
    finished: int = 0  # over the run
    failed: int = 0  # attempts that gave no trajectory, expired leases counted

    @property
    def current(self) -> Evaluation | None:
        """The one that is not over; there is at most one."""
        newest = next(reversed(self.evaluations.values()), None)
        return None if newest is None or newest.is_over else newest

    def is_due(self, served: int, every: int) -> bool:
        """Whether one is to begin at the version that is served: the first version, and the first one at or past each
        multiple of `every` that comes when no other is under way."""
        if self.current is not None or served in self.evaluations:
            return False
        newest = max(self.evaluations, default=None)
        return newest is None or served // every > newest // every

    def begin(self, version: int) -> None:
        """Attempt the held-out tasks from now on."""
        self.evaluations[version] = Evaluation(version=version)

    def wanted(self, served: int) -> tuple[int, ...]:
        """Versions whose weights may be the best of the run: that of the best evaluation so far (of equal ones the
        first; the model that a run begins from needs no checkpoint), one under way, and the one that is served, where
        the next evaluation may begin."""
        over = [each for each in self.evaluations.values() if each.is_over and each.version > 0]
        best = max(over, key=lambda each: (each.num_resolved, -each.version), default=None)
        current = self.current
        return (*([best.version] if best else []), *([current.version] if current else []), served)

    def next_task(self, tasks: Sequence[str], set_aside: Collection[str]) -> str | None:
        """The task that the current evaluation attempts next; one that cannot be run is passed over."""
        if self.current is None:
            return None
        left = tasks[self.current.next_task :]
        return next((task for task in left if task not in set_aside), None)

    def may_score(self, num_scoring: int, limit: int, batch: int, *, is_spare: bool) -> bool:
        """Whether one more episode of an evaluation may begin.

        Args:
            num_scoring: that run now.
            limit: episodes, of whatever kind, that may run at once.
            batch: trajectories of one step: never do more run, nor more begin between two batches.
            is_spare: nothing to train on wants the place.
        """
        if max(num_scoring, self.leased) >= batch:
            return False
        return is_spare or num_scoring < max(1, int(limit * SHARE))


def nearest(steps: Collection[int], version: int) -> int | None:
    """Of the steps that checkpoints are of, the one nearest a version, the earlier of two; None of none."""
    return min(steps, key=lambda step: (abs(step - version), step), default=None)


def expendable(steps: Collection[int], keep: int, wanted: Collection[int]) -> list[int]:
    """Steps whose checkpoints may go: neither among the newest `keep` nor nearest a version that is wanted."""
    newest = sorted(steps)[-keep:]
    stay = {*newest, *(nearest(steps, version) for version in wanted)}
    return [step for step in sorted(steps) if step not in stay]


def scored(trajectory: Trajectory) -> Scored:
    """What an evaluation remembers of a trajectory (one that was checked: some token of it was sampled)."""
    sampled = trajectory.loss_mask == 1
    versions = trajectory.versions[sampled]
    return Scored(
        task_id=trajectory.task_id,
        run=trajectory.member,
        resolved=trajectory.resolved,
        num_turns=len(trajectory.turns),
        num_tokens=len(trajectory.token_ids),
        end_reason=trajectory.end_reason,
        mean_logprob=float(trajectory.logprobs[sampled].mean()),
        oldest_version=int(versions.min()),
        newest_version=int(versions.max()),
    )
