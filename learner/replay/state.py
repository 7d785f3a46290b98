"""Everything the replay buffer knows, as plain data: what a restart must bring back, and nothing that can be derived.

A snapshot in the journal is this structure in msgpack. Only `Replay` changes it, and only by folding events.
"""

from __future__ import annotations

from msgspec import Struct, field

from learner.held_out import HeldOut
from learner.replay.audit import Audit
from learner.replay.curriculum import PassRate
from learner.replay.events import Finished
from learner.replay.survivorship import Survivorship


class Member(Struct, kw_only=True, array_like=True, gc=False):
    """One of a group's episodes. At most one of `running_version >= 0` and `finished` holds."""

    attempts: int = 0  # attempts leased so far; the newest may be running
    running_version: int = -1  # policy version when the running attempt was leased; -1: none is running
    actor: str = ""  # who runs it
    finished: Finished | None = None
    excused: int = 0  # ended attempts that were the place's fault: they are not held against the member

    @property
    def running(self) -> bool:
        """Whether an actor holds the lease of the newest attempt."""
        return self.running_version >= 0


class Group(Struct, kw_only=True, array_like=True):
    """The open group of a task: some of its members run, wait for a lease, or are finished."""

    index: int
    task_id: str
    oldest: int  # version under which its places are counted: no token of it is older
    members: list[Member]
    failures: dict[str, int] = field(default_factory=dict)  # ended attempts, by kind
    reason: str = ""  # what the newest of them said
    evaluates: int = -1  # the version whose evaluation it belongs to; -1: it is trained on

    @property
    def is_trained(self) -> bool:
        """Whether it holds places of a batch."""
        return self.evaluates < 0


class Item(Struct, kw_only=True, array_like=True):
    """Finished members that go into a batch together: a whole group (rl) or one success (rft)."""

    group: int
    task_id: str
    oldest: int
    places: int
    finished: list[Finished]


class FormedBatch(Struct, kw_only=True, array_like=True):
    """The batch of a step, kept until the learner can no longer fall back behind it."""

    step: int
    items: list[Item]
    trained: bool = False


class Tally(Struct, kw_only=True):
    """Counts over the whole run."""

    leased: int = 0
    accepted: int = 0
    accepted_reward: float = 0.0
    accepted_resolved: int = 0
    accepted_tokens: int = 0
    failed: int = 0
    expired: int = 0
    groups_opened: int = 0
    groups_closed: int = 0
    groups_short: int = 0
    trained: int = 0
    ended: dict[str, int] = field(default_factory=dict)  # attempts without trajectory, by kind
    filtered: dict[str, int] = field(default_factory=dict)  # trajectories, by filter


class State(Struct, kw_only=True):
    """The buffer."""

    served: int = 0  # newest version that every generator serves
    learner: int = 0  # newest version that the learner is known to have reached
    last_batch: int = 0  # step of the newest batch that was formed
    next_group: int = 0
    draws: int = 0
    open: dict[int, Group] = field(default_factory=dict)
    ready: dict[int, list[Item]] = field(default_factory=dict)  # by oldest version; first come, first served
    batches: dict[int, FormedBatch] = field(default_factory=dict)  # by step
    closed: dict[int, list[int]] = field(
        default_factory=dict
    )  # closed groups: accepted attempt of each member, 0: none
    checkpoints: dict[int, str] = field(default_factory=dict)  # versions that the learner can come back to
    rates: dict[str, PassRate] = field(default_factory=dict)
    set_aside: dict[str, str] = field(default_factory=dict)  # tasks that cannot be run, and why
    again: list[str] = field(default_factory=list)  # tasks of an evaluation that are to be tried once more
    pool_rule: str = ""
    dropped: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    survivorship: Survivorship = field(default_factory=Survivorship)
    audit: Audit = field(default_factory=Audit)
    held_out: HeldOut = field(default_factory=HeldOut)
