"""The replay buffer as a pure state machine: messages and a clock in, messages and events out.

`handle` and `tick` decide: they look at the ledger, emit events and build the reply. The ledger folds every event as it
is emitted, and again when a journal is read back; nothing else changes it. The shell journals the events of an outcome
before its reply leaves. No sockets, no torch, no time of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from learner.held_out import scored
from learner.replay.admission import Concurrency
from learner.replay.batching import Batching
from learner.replay.curriculum import tasks_to_drop
from learner.replay.events import (
    Accepted,
    Ended,
    EpisodeScored,
    EvaluationBegun,
    EvaluationEnded,
    Event,
    GroupClosed,
    GroupOpened,
    Leased,
    PoolChosen,
    RatesKnown,
    TaskSetAside,
    TasksGivenBack,
    digest,
)
from learner.replay.filters import Filtered, chain_of, run_chain
from learner.replay.health import Health, Outage, is_of_task
from learner.replay.leases import EXPIRED, Attempt, Deadlines, parse_lease_id
from learner.replay.ledger import Ledger
from learner.replay.state import FormedBatch, Group, State
from learner.replay.submission import check_identity, check_trajectory
from protocol.config import Settings
from protocol.errors import ConfigError, ReplayError
from protocol.messages import (
    BatchDone,
    BatchRequest,
    CheckpointMark,
    Fail,
    FailReply,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeaseReply,
    LeaseRequest,
    Message,
    Pressure,
    PressureReply,
    Sampling,
    Submit,
    SubmitReply,
    TaskRef,
    VersionReady,
)

_MOST_LEASES = 4096  # of one reply
_MOST_KINDS = 200  # of failures that are counted apart
_LONGEST_NAME = 200
_LONGEST_REASON = 300
_SHARE_AT_START = 0.1  # of replay.give_up_s, in a run in which nothing has worked yet
_AHEAD = 8  # draws that are told before their time
_REDRAWS = 4  # draws given to finding a task that is not being worked on already


class Outcome(NamedTuple):
    """What came of a message. The reply leaves only after the journal has `events` and all that was emitted before."""

    reply: Message | FormedBatch
    events: list[Event]


class Replay:
    """Leases, groups, filters, ready batches, the curriculum, and when to wait.

    Args:
        settings: of the run.
        tasks: the tasks of the run, in a fixed order.
        state: of an earlier life (a snapshot); empty at the start.
        held_out: tasks that are scored every `eval.every` versions, in a fixed order; none of `tasks` among them.
    """

    def __init__(
        self,
        settings: Settings,
        tasks: Sequence[TaskRef],
        state: State | None = None,
        held_out: Sequence[TaskRef] = (),
    ) -> None:
        self.settings = settings
        self.ledger = Ledger(settings, tasks, state or State(), held_out)
        self._held_out_ids = list(self.ledger.held_out)
        self._task_ids = list(self.ledger.tasks)
        self.concurrency = Concurrency(settings.num_actors)
        self.paused = ""  # why nothing is leased, if the shell says so
        self.outage: Outage | None = None
        self._health = Health()
        self._lost: set[str] = set()  # tasks that were set aside while nothing worked
        self._chain = chain_of(settings)
        self._events: list[Event] = []
        self._drawn_ahead: tuple[int, list[str]] = (-1, [])  # by the number of the next draw
        self._deadlines = Deadlines(settings.replay.lease_s)
        self._batching = Batching(settings, self.ledger, self._emit)

    @property
    def state(self) -> State:
        """All that a restart must bring back."""
        return self.ledger.state

    def start(self, now: float, earlier: Mapping[str, tuple[int, int]] | None = None) -> list[Event]:
        """Begin, or begin again with a ledger that was read back: running leases get a whole lease time once more.

        Args:
            earlier: (runs, resolved) of tasks in an earlier stage, heeded by a buffer that has seen none itself.

        Raises:
            ConfigError: the stage's rule leaves no task.
        """
        for attempt in self.ledger.running:
            self._deadlines.begin(attempt, now)
        self._events = []
        if earlier and not self.state.rates:
            self._emit(RatesKnown(rates=dict(earlier)))
        rule = f"{self.settings.replay.drop_solved_above:g} {self.settings.replay.drop_unsolved}"
        if rule != self.state.pool_rule:
            dropped = tasks_to_drop(
                self.state.rates, self.settings.replay.drop_solved_above, self.settings.replay.drop_unsolved
            )
            if set(self._task_ids) <= set(dropped):
                raise ConfigError("replay.drop_unsolved and replay.drop_solved_above leave no task", kind="pool")
            self._emit(PoolChosen(rule=rule, dropped=sorted(dropped)))
        return self._events

    def handle(self, message: Message, now: float, position: int = 0) -> Outcome:
        """Decide what a message does.

        Args:
            now: seconds, never going back.
            position: where the journal will put the events of this outcome.

        Raises:
            ReplayError: the message breaks a rule; nothing has changed.
        """
        self._events = []
        match message:
            case LeaseRequest():
                reply: Message | FormedBatch = self._lease(message, now)
            case Heartbeat():
                reply = self._heartbeat(message, now)
            case Submit():
                reply = self._submit(message, now, position)
            case Fail():
                reply = self._fail(message, now)
            case BatchRequest():
                reply = self._batching.give(message)
            case BatchDone():
                reply = self._batching.trained(message)
            case VersionReady():
                reply = self._batching.served(message)
            case CheckpointMark():
                reply = self._batching.checkpointed(message, position)
            case Pressure():
                reply = self._pressure(message, now)
            case _:
                raise ReplayError(f"the replay buffer does not answer {type(message).__name__}", kind="unknown_type")
        return Outcome(reply, self._events)

    def tick(self, now: float) -> list[Event]:
        """Expire leases whose actors fell silent; adjust the concurrency; begin and end evaluations."""
        self._events = []
        self.concurrency.adjust(self.num_running, now)
        for attempt in self._deadlines.expired(now, self.ledger.running.__contains__):
            self._end(attempt, EXPIRED)
        self._look_around(now)
        if self._held_out_ids and self.settings.eval.every:
            self._evaluate()
        return self._events

    def _evaluate(self) -> None:
        """An evaluation begins when it is due, and ends when nothing more of it can come."""
        held_out, served = self.state.held_out, self.state.served
        current = held_out.current
        if current is not None:
            waiting = held_out.next_task(self._held_out_ids, self.state.set_aside)
            if waiting is None and not any(group.evaluates == current.version for group in self.state.open.values()):
                self._emit(EvaluationEnded(version=current.version))
        elif not self.done and self._is_served_known and held_out.is_due(served, self.settings.eval.every):
            self._emit(EvaluationBegun(version=served))

    @property
    def _is_served_known(self) -> bool:
        """Not where a learner came back to a later version with a new buffer, until its version is served."""
        return self.state.served > 0 or self.state.learner == 0

    @property
    def num_running(self) -> int:
        """Leases that actors hold."""
        return len(self.ledger.running)

    @property
    def num_places(self) -> int:
        """Places taken over the run: `running + collected`, whole groups counted."""
        return self.state.last_batch * self.ledger.places.batch + self.ledger.places.outstanding

    @property
    def most_places(self) -> int:
        """The bound on `num_places` at the version that is served now."""
        return self.ledger.places.bound(self.state.served, self.settings.steps)

    @property
    def done(self) -> bool:
        """No more episodes are needed."""
        if self.settings.phase == "eval":
            return self.state.draws >= len(self._task_ids) and not self.state.open and not self.state.again
        return self.state.last_batch >= self.settings.steps

    @property
    def waiting_for(self) -> str:
        """Why nothing (more) is leased now; empty if something would be."""
        if self.paused:
            return self.paused
        if self.outage:
            return str(self.outage)
        if self.num_running >= self.concurrency.limit:
            cause = self.concurrency.held_back_by or "num_actors"
            return f"concurrency: {self.num_running} of {self.concurrency.limit} leases run, held back by {cause}"
        if self.ledger.to_lease:
            return ""
        if not self.tasks_left:
            return "tasks: all of them are set aside or left out"
        if self.settings.phase == "eval":
            if self.state.draws < len(self._task_ids) or self.state.again:
                return ""
            return f"the last {self.num_running} episodes of the evaluation"
        if self._room() >= self._smallest_group:
            return ""
        return (
            f"staleness bound: {self.ledger.places.outstanding} places are taken and {self.state.last_batch} batches "
            f"formed at version {self.state.served} with max_staleness {self.settings.max_staleness}"
        )

    def _lease(self, request: LeaseRequest, now: float) -> LeaseReply:
        if request.capacity < 0:
            raise ReplayError(f"capacity {request.capacity}: expected 0 or more", kind="capacity")
        if len(request.actor) > _LONGEST_NAME:
            raise ReplayError(f"an actor's name has at most {_LONGEST_NAME} characters", kind="name")
        self._health.heard(request.actor, now)
        room = min(request.capacity, self.concurrency.limit - self.num_running, _MOST_LEASES)
        room = self._health.room(request.actor, room, now)
        leases: list[Lease] = []
        while len(leases) < room and not self.paused and not self.done and (found := self._next_member()):
            index, number = found
            attempt = Attempt(index, number, self.state.open[index].members[number].attempts + 1)
            self._emit(
                Leased(
                    group=index, member=number, attempt=attempt.number, version=self.state.served, actor=request.actor
                )
            )
            self._deadlines.begin(attempt, now)
            leases.append(self._describe(attempt))
        self._health.gave(request.actor, len(leases), now)
        soon = self._soon()
        if len(leases) == request.capacity or self.done:
            return LeaseReply(leases=leases, done=self.done, soon=soon)
        return LeaseReply(leases=leases, retry_after_s=0.2, waiting_for=self.waiting_for, soon=soon)

    def _soon(self) -> tuple[str, ...]:
        """Tasks that will be leased next: of members that wait, of draws to come (as the curriculum stands now), and of
        the evaluation under way. For whoever can make something ready for them; nothing hangs on it."""
        if self.done:
            return ()
        waiting = [self.state.open[index].task_id for index, _ in itertools.islice(self.ledger.to_lease, _AHEAD)]
        if self.state.draws != self._drawn_ahead[0]:
            self._drawn_ahead = self.state.draws, self._draw_ahead()
        scored: list[str] = []
        if self.state.held_out.current is not None:
            scored = self._held_out_ids[self.state.held_out.current.next_task :][: _AHEAD // 2]
        tasks = dict.fromkeys([*waiting, *self._drawn_ahead[1], *scored])
        return tuple(task for task in tasks if task not in self.state.set_aside)

    def _draw_ahead(self) -> list[str]:
        draws = self.state.draws
        if self.settings.phase == "eval":
            return [*self.state.again, *self._task_ids[draws : draws + _AHEAD]][:_AHEAD]
        curriculum = self.ledger.curriculum
        return [curriculum.draw(draws + number) for number in range(_AHEAD)] if curriculum is not None else []

    def _next_member(self) -> tuple[int, int] | None:
        """Whose turn it is: an evaluation has its share of the places first, and what training leaves last."""
        if self._may_score(is_spare=False):
            return self.ledger.to_score[0]
        if self.ledger.to_lease or self._open_group():
            return self.ledger.to_lease[0]
        return self.ledger.to_score[0] if self._may_score(is_spare=True) else None

    def _may_score(self, *, is_spare: bool) -> bool:
        """Whether a member of an evaluation waits and may be leased."""
        if not self._held_out_ids or not self.settings.eval.every:
            return False
        held_out, batch = self.state.held_out, self.settings.replay.batch
        if not held_out.may_score(len(self.ledger.scoring), self.concurrency.limit, batch, is_spare=is_spare):
            return False
        if self.ledger.to_score:
            return True
        current = held_out.current
        task = held_out.next_task(self._held_out_ids, self.state.set_aside)
        if current is None or task is None:
            return False
        self._emit(
            GroupOpened(
                group=self.state.next_group,
                task_id=task,
                size=self.settings.eval.runs_in_training,
                draws=self.state.draws,
                evaluates=current.version,
            )
        )
        return True

    def _open_group(self) -> bool:
        """Draw a task and open a group if admission allows it."""
        number = self.state.draws
        if self.settings.phase == "eval":
            if not self.state.again and number >= len(self._task_ids):
                return False
            again = bool(self.state.again)
            task, size = self.state.again[0] if again else self._task_ids[number], self.settings.eval.runs
            number -= again
        else:
            if not self.tasks_left:
                return False
            room = self._room()
            if room < self._smallest_group:
                return False
            size = min(self.settings.replay.group_size, room)
            curriculum = self.ledger.curriculum
            assert curriculum is not None
            worked_on = {group.task_id for group in self.state.open.values()} if len(self.state.open) < 64 else set()
            for _ in range(_REDRAWS):
                task = curriculum.draw(number)
                if task not in worked_on:
                    break
                number += 1
        self._emit(GroupOpened(group=self.state.next_group, task_id=task, size=size, draws=number + 1))
        return True

    def _heartbeat(self, beat: Heartbeat, now: float) -> HeartbeatReply:
        unknown = []
        for name in beat.lease_ids:
            attempt = parse_lease_id(name)
            if attempt in self.ledger.running and self.ledger.member(attempt).actor == beat.actor:
                self._deadlines.extend(attempt, now)
                self._health.heard(beat.actor, now)  # one that is full asks for nothing
            else:
                unknown.append(name)
        return HeartbeatReply(unknown=unknown)

    def _submit(self, submit: Submit, now: float, position: int) -> SubmitReply:
        trajectory = submit.trajectory
        attempt = self._given(trajectory.lease_id)
        if self.ledger.accepted_attempt(attempt) == attempt.number:
            return SubmitReply(status="duplicate")
        if attempt not in self.ledger.running:
            return SubmitReply(status="late")
        lease = self._describe(attempt)
        check_identity(trajectory, lease)
        newest = max(self.state.served, self.state.last_batch)
        oldest = check_trajectory(trajectory, newest, lease.max_context)
        self._health.worked(self.ledger.member(attempt).actor, now)
        evaluates = self.state.open[attempt.group].evaluates
        self._emit(Accepted(finished=digest(trajectory, attempt.group, position, oldest)))
        if evaluates in self.state.held_out.evaluations:
            self._emit(EpisodeScored(version=evaluates, scored=scored(trajectory)))
        self._close_if_complete(attempt.group)
        self._look_around(now)
        return SubmitReply(status="accepted")

    def _fail(self, fail: Fail, now: float) -> FailReply:
        attempt = self._given(fail.lease_id)
        if attempt in self.ledger.running:
            known = self.state.tally.ended
            kind = fail.kind[:_LONGEST_NAME] or "unknown"
            member, task = self.ledger.member(attempt), self.state.open[attempt.group].task_id
            is_place = self._health.failed(member.actor, task, kind, fail.reason, now, self.tasks_left)
            # While nothing works anywhere it may be the tasks after all: each is excused so often. Else another place
            # shows which of the two it is.
            excused = is_place and (self.outage is None or member.excused < self.settings.replay.max_attempts)
            kind = kind if kind in known or len(known) < _MOST_KINDS else "other"
            self._end(attempt, kind, fail.reason[:_LONGEST_REASON], excused=excused)
            self._look_around(now)
        return FailReply()

    def _end(self, attempt: Attempt, kind: str, reason: str = "", *, excused: bool = False) -> None:
        number = attempt.number
        self._emit(
            Ended(group=attempt.group, member=attempt.member, attempt=number, kind=kind, reason=reason, excused=excused)
        )
        self._set_aside_if_unusable(self.state.open[attempt.group])
        if attempt.group in self.state.open:
            self._close_if_complete(attempt.group)

    def _set_aside_if_unusable(self, group: Group) -> None:
        """Nothing of it ever ended in a trajectory, and nothing more is to be tried; its own errors need no more
        attempts than one member has."""
        if group.task_id in self.state.set_aside or any(m.running or m.finished for m in group.members):
            return
        if not group.failures.keys() - {EXPIRED}:  # its actors died: that says nothing of it
            return
        own = sum(count for kind, count in group.failures.items() if is_of_task(kind))
        if own >= self.settings.replay.max_attempts or not any(self.ledger.may_try(group, m) for m in group.members):
            if self.outage and own < self.settings.replay.max_attempts:
                self._lost.add(group.task_id)
            causes = ", ".join(f"{kind} x{count}" for kind, count in sorted(group.failures.items()))
            self._set_aside(group.task_id, f"{causes}: {group.reason}")

    def _set_aside(self, task_id: str, reason: str) -> None:
        """Nothing more is tried of it, and its groups on which nobody works give their places back."""
        self._emit(TaskSetAside(task_id=task_id, reason=reason))
        for index in [group.index for group in self.state.open.values() if group.task_id == task_id]:
            self._close_if_complete(index)

    def _look_around(self, now: float) -> None:
        """An outage began or ended. What a place failed at before it was known to be out of order is tried again, and
        so is what an outage used up: once it is over, or where nothing else is left that could show that it is."""
        self.outage = self._health.outage(now)
        doubtful = self._health.pop_doubtful()
        if self.outage is None:
            doubtful |= self._lost
            self._lost.clear()
        elif now - self.outage.since < self._give_up_s:
            doubtful |= set() if self._is_anything_left else self._lost
        else:
            for task in self._tried_out():
                self._set_aside(task, str(self.outage))
        own = {task for task, why in self.state.set_aside.items() if is_of_task(why)}
        if given_back := sorted(doubtful & (self.state.set_aside.keys() - own)):
            self._emit(TasksGivenBack(task_ids=given_back))

    @property
    def _is_anything_left(self) -> bool:
        return not self.done if self.settings.phase == "eval" else self.tasks_left > 0

    def _tried_out(self) -> list[str]:
        """All that is left of an evaluation that has worked, where each of it failed in this outage and nothing of it
        ever finished: then it may as well be these tasks, and the run does not end for them. Else nothing."""
        groups, again = self.state.open.values(), self.state.again
        if self.settings.phase != "eval" or self.state.draws < len(self._task_ids) or not self.state.tally.accepted:
            return []
        left = dict.fromkeys([*(group.task_id for group in groups), *again])
        has_worked = any(member.finished for group in groups for member in group.members)
        is_tried = self.outage is not None and left.keys() <= self.outage.tasks
        return list(left) if is_tried and not has_worked else []

    @property
    def _give_up_s(self) -> float:
        has_worked = self.state.tally.accepted or self.state.held_out.finished
        return self.settings.replay.give_up_s * (1 if has_worked else _SHARE_AT_START)

    @property
    def tasks_left(self) -> int:
        """Tasks that may be drawn."""
        gone = self.state.set_aside.keys() | set(self.state.dropped)
        return len(self._task_ids) - len(gone & self.ledger.tasks.keys())

    def given_up(self, now: float) -> str:
        """Why no more of this run can be had; empty while it goes on."""
        give_up_s = self._give_up_s
        if self.outage and now - self.outage.since >= give_up_s and not (self.done or self._tried_out()):
            return f"{self.outage}. Given up after {give_up_s:g} s: mend it, or raise --replay.give-up-s"
        if self.settings.phase != "eval" and not self.tasks_left:
            first, why = next(iter(self.state.set_aside.items()), ("", ""))
            return f"every task is set aside, {first!r} first: {why}"
        return ""

    def _close_if_complete(self, index: int) -> None:
        group = self.state.open[index]
        finished = []
        for member in group.members:
            if member.finished is not None:
                finished.append(member.finished)
            elif member.running or self.ledger.may_try(group, member):
                return
        filtered = run_chain(self._chain, finished) if group.is_trained else Filtered([], {})
        missing = len(group.members) - len(finished)
        causes = ", ".join(f"{kind} x{count}" for kind, count in sorted(group.failures.items()))
        self._emit(
            GroupClosed(
                group=index,
                kept=[member.member for member in filtered.kept],
                removed=filtered.removed,
                reason=f"{missing} of {len(group.members)} never finished: {causes}" if missing else "complete",
                split=self.settings.phase == "rft",
            )
        )

    def _pressure(self, pressure: Pressure, now: float) -> PressureReply:
        for name, level in pressure.levels.items():
            if not math.isfinite(level):
                raise ReplayError(f"pressure {name[:80]!r} is {level}: expected a share", kind="not_finite")
            self.concurrency.report(f"{pressure.source}.{name}"[:160], level, now)
        return PressureReply(limit=self.concurrency.limit)

    @property
    def _smallest_group(self) -> int:
        """RFT has no use for whole groups: the last one of a batch is as small as the room that is left."""
        return 1 if self.settings.phase == "rft" else self.settings.replay.group_size

    def _room(self) -> int:
        return self.most_places - self.num_places

    # --- leases ---------------------------------------------------------------------------------------------------

    def _describe(self, attempt: Attempt) -> Lease:
        group = self.state.open[attempt.group]
        episode = self.settings.episode
        task = self.ledger.tasks.get(group.task_id) or self.ledger.held_out.get(group.task_id)
        max_turns, max_context = self.settings.episode_limits(task.source if task else "")
        return Lease(
            lease_id=attempt.lease_id,
            episode_id=attempt.episode_id,
            task_id=group.task_id,
            group_id=attempt.group_id,
            member=attempt.member,
            attempt=attempt.number,
            version=group.members[attempt.member].running_version,
            deadline_at=self._deadlines[attempt],
            sampling=Sampling(
                temperature=episode.temperature, max_tokens=episode.max_turn_tokens, version=group.evaluates
            ),
            max_turns=max_turns,
            max_context=max_context,
            evaluates=group.evaluates,
        )

    def _given(self, name: str) -> Attempt:
        """The attempt that a lease id names. Raises `ReplayError` if it was never given."""
        attempt = parse_lease_id(name)
        if attempt is None or not self.ledger.was_given(attempt):
            raise ReplayError(f"lease {name[:80]!r} was never given", kind="unknown_lease")
        return attempt

    def _emit(self, event: Event) -> None:
        self._events.append(event)
        self.ledger.fold(event)
