"""What can happen to the replay buffer: the records of its journal.

`Replay` decides what happens and folds it into its state; folding the same events again gives the same state, which is
all that a restart does. Events are small; the tokens of an accepted trajectory lie in the same journal record, after
the events.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from learner.held_out import Scored
from protocol.errors import JournalError
from protocol.messages import EndReason, Trajectory

_LONGEST_S = 1e7  # clocks of other hosts may say anything


class Finished(Struct, frozen=True, kw_only=True, gc=False):
    """What the buffer remembers of an accepted trajectory while its tokens lie in the journal at `position`.

    Like `Member` it is in no cycle and kept by the hundred thousand: the collector of cycles need not look at it.
    """

    group: int
    member: int
    attempt: int
    position: int
    resolved: bool
    reward: float
    end_reason: EndReason
    num_tokens: int  # that a learner computes: of all paths, each with its own context
    num_turns: int
    num_readable_turns: int
    oldest_version: int
    duration_s: float
    overlong: bool
    tampered: bool
    zero_because: str = ""  # of a reward of 0, see `Trajectory`


class Event(Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """Base of everything that the journal remembers."""


class GroupOpened(Event, frozen=True, kw_only=True, array_like=True):
    """A task was drawn; `size` episodes of it will be leased. `draws` counts the run's draws with this one."""

    group: int
    task_id: str
    size: int
    draws: int
    evaluates: int = -1  # the version whose evaluation it belongs to: nothing of it is trained on; -1: to none


class Leased(Event, frozen=True, kw_only=True, array_like=True):
    """An episode was given to an actor."""

    group: int
    member: int
    attempt: int
    version: int
    actor: str


class Ended(Event, frozen=True, kw_only=True, array_like=True):
    """An attempt ended without a trajectory: it failed (`kind` is the error's label) or its lease expired."""

    group: int
    member: int
    attempt: int
    kind: str
    reason: str = ""
    excused: bool = False  # the place's fault: it uses up none of the member's attempts


class Accepted(Event, frozen=True, kw_only=True, array_like=True):
    """A trajectory came in."""

    finished: Finished


class GroupClosed(Event, frozen=True, kw_only=True, array_like=True):
    """No member is missing any more. `kept` members wait to be trained on, the others were removed by filters."""

    group: int
    kept: list[int]
    removed: dict[str, int]  # trajectories by filter
    reason: str  # "complete", or why members are missing
    split: bool  # kept members go into batches one by one (rft), not as a group


class TaskSetAside(Event, frozen=True, kw_only=True, array_like=True):
    """A task cannot be run: nothing more of it is leased."""

    task_id: str
    reason: str


class TasksGivenBack(Event, frozen=True, kw_only=True, array_like=True):
    """Tasks were set aside while nothing worked: they are to be tried again."""

    task_ids: list[str]


class Stale(Event, frozen=True, kw_only=True, array_like=True):
    """A ready item had become too old to be trained on."""

    group: int
    members: list[int]


class BatchFormed(Event, frozen=True, kw_only=True, array_like=True):
    """The batch of `step` was put together from ready items, named by group and members."""

    step: int
    items: list[tuple[int, list[int]]]


class Trained(Event, frozen=True, kw_only=True, array_like=True):
    """The learner's state includes the batch of `step`."""

    step: int


class VersionServed(Event, frozen=True, kw_only=True, array_like=True):
    """Every generator serves `version`."""

    version: int


class Started(Event, frozen=True, kw_only=True, array_like=True):
    """The learner began at `version` with a buffer that had made no batch."""

    version: int


class Checkpointed(Event, frozen=True, kw_only=True, array_like=True):
    """The learner can come back to `version`."""

    version: int
    path: str


class EvaluationBegun(Event, frozen=True, kw_only=True, array_like=True):
    """Held-out tasks are attempted from `version` on."""

    version: int


class EpisodeScored(Event, frozen=True, kw_only=True, array_like=True):
    """A trajectory of the evaluation of `version` came in; it stands beside its `Accepted`."""

    version: int
    scored: Scored


class EvaluationEnded(Event, frozen=True, kw_only=True, array_like=True):
    """Every held-out task was attempted, or cannot be."""

    version: int


class RatesKnown(Event, frozen=True, kw_only=True, array_like=True):
    """An earlier stage's (runs, resolved) by task, taken over at the start."""

    rates: dict[str, tuple[int, int]]


class PoolChosen(Event, frozen=True, kw_only=True, array_like=True):
    """Tasks that left the pool under `rule`, decided once at the start of a stage."""

    rule: str
    dropped: list[str]


AnyEvent = (
    GroupOpened
    | Leased
    | Ended
    | Accepted
    | GroupClosed
    | TaskSetAside
    | TasksGivenBack
    | Stale
    | BatchFormed
    | Trained
    | VersionServed
    | Started
    | Checkpointed
    | EvaluationBegun
    | EpisodeScored
    | EvaluationEnded
    | RatesKnown
    | PoolChosen
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[AnyEvent])


def encode(events: Sequence[Event]) -> bytes:
    """One journal frame: events that happened together and are remembered or lost together."""
    return _encoder.encode(list(events))


def decode(frame: bytes | memoryview) -> list[AnyEvent]:
    """The events of a journal frame. Raises `JournalError` (kind `events`): it is whole, and not this release's."""
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError) as error:
        raise JournalError(
            f"expected events of the replay buffer: {error}; the journal is another release's: go on with that one",
            kind="events",
        ) from error


def digest(trajectory: Trajectory, group: int, position: int, oldest_version: int) -> Finished:
    """What to remember of a trajectory that was accepted into `group`."""
    return Finished(
        group=group,
        member=trajectory.member,
        attempt=trajectory.attempt,
        position=position,
        resolved=trajectory.resolved,
        reward=trajectory.reward,
        end_reason=trajectory.end_reason,
        num_tokens=sum(trajectory.branches.path_lengths()),
        num_turns=len(trajectory.turns),
        num_readable_turns=sum(not turn.format_error for turn in trajectory.turns),
        oldest_version=oldest_version,
        duration_s=min(max(trajectory.finished_at - trajectory.started_at, 0.0), _LONGEST_S),
        overlong=trajectory.overlong,
        tampered=trajectory.tampered,
        zero_because=trajectory.zero_because,
    )
