"""The state of the replay buffer and every index over it, changed by folding events and by nothing else.

Folding the same events gives the same ledger, which is all that a restart does.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

from learner.replay.admission import Places, shift
from learner.replay.curriculum import Curriculum, Mixture, PassRate
from learner.replay.events import (
    Accepted,
    BatchFormed,
    Checkpointed,
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
    Stale,
    Started,
    TaskSetAside,
    TasksGivenBack,
    Trained,
    VersionServed,
)
from learner.replay.filters import STALE
from learner.replay.leases import EXPIRED, Attempt
from learner.replay.state import FormedBatch, Group, Item, Member, State
from protocol.config import Settings
from protocol.messages import TaskRef


class Ledger:
    """What the buffer knows.

    Args:
        settings: of the run.
        tasks: the tasks of the run, in a fixed order.
        state: a snapshot; empty at the start.
        held_out: tasks that are scored while the run trains, in a fixed order.

    Attributes:
        places: held by open groups and ready items.
        running: attempts that actors hold leases of.
        scoring: those of them that belong to an evaluation.
        to_lease: members (group, member) that nobody runs; those that were tried already come first.
        to_score: the same, of groups that belong to an evaluation.
        curriculum: of the tasks that are in the pool; None in an evaluation.
    """

    def __init__(
        self, settings: Settings, tasks: Sequence[TaskRef], state: State, held_out: Sequence[TaskRef] = ()
    ) -> None:
        self.settings = settings
        self.tasks = {task.task_id: task for task in tasks}
        self.held_out = {task.task_id: task for task in held_out}
        self._held_out_index = {task: i for i, task in enumerate(self.held_out)}
        self.state = state
        self.places = Places(settings.replay.batch, settings.max_staleness)
        self.running: set[Attempt] = set()
        self.scoring: set[Attempt] = set()
        self.to_lease: deque[tuple[int, int]] = deque()
        self.to_score: deque[tuple[int, int]] = deque()
        self.curriculum: Curriculum | Mixture | None = None
        self._index_state()

    def member(self, attempt: Attempt) -> Member:
        """The member of an open group that an attempt is at."""
        return self.state.open[attempt.group].members[attempt.member]

    def accepted_attempt(self, attempt: Attempt) -> int:
        """Which attempt of the same member was accepted; 0: none."""
        if attempt.group in self.state.closed:
            return self.state.closed[attempt.group][attempt.member]
        finished = self.member(attempt).finished
        return finished.attempt if finished else 0

    def may_try(self, group: Group, member: Member) -> bool:
        """Whether a member waits to be leased: nobody runs it, it has attempts left, and its task can be run."""
        attempts = member.attempts - member.excused
        left = not member.running and member.finished is None and attempts < self.settings.replay.max_attempts
        return left and group.task_id not in self.state.set_aside

    def was_given(self, attempt: Attempt) -> bool:
        """Whether an actor was ever given this lease."""
        index, number, count = attempt
        if index in self.state.open:
            members = self.state.open[index].members
            return number < len(members) and 0 < count <= members[number].attempts
        return index in self.state.closed and number < len(self.state.closed[index]) and count > 0

    def live_positions(self) -> list[int]:
        """Journal positions of every trajectory that may still go into a batch, or again."""
        items = [item for ready in self.state.ready.values() for item in ready]
        items += [item for batch in self.state.batches.values() for item in batch.items]
        members = [member for item in items for member in item.finished]
        trained = [group for group in self.state.open.values() if group.is_trained]
        members += [m.finished for group in trained for m in group.members if m.finished]
        return [member.position for member in members]

    def fold(self, event: Event) -> None:
        """Change the state by one event, and every index over it."""
        state = self.state
        match event:
            case Leased():
                self._fold_leased(event)
            case Accepted():
                self._fold_accepted(event)
            case Ended():
                self._fold_ended(event)
            case GroupOpened():
                self._fold_opened(event)
            case GroupClosed():
                self._fold_closed(event)
            case TaskSetAside(task_id=task_id, reason=reason):
                self._fold_set_aside(task_id, reason)
            case TasksGivenBack(task_ids=task_ids):
                self._fold_given_back(task_ids)
            case Stale(group=index, members=members):
                _count(state.tally.filtered, STALE, len(self._take(index, members).finished))
            case BatchFormed(step=step, items=items):
                state.batches[step] = FormedBatch(step=step, items=[self._take(*item) for item in items])
                state.last_batch = step
                state.held_out.leased = 0
            case Trained(step=step):
                self._fold_trained(state.batches[step])
            case VersionServed(version=version):
                state.served = version
            case Started(version=version):
                state.last_batch = state.learner = version
            case Checkpointed(version=version, path=path):
                self._fold_checkpoint(version, path)
            case EvaluationBegun(version=version):
                state.held_out.begin(version)
            case EpisodeScored(version=version, scored=scored):
                state.held_out.evaluations[version].attempts.append(scored)
            case EvaluationEnded(version=version):
                state.held_out.evaluations[version].is_over = True
            case RatesKnown(rates=rates):
                state.rates = {task: PassRate(num_runs=n, num_resolved=k) for task, (n, k) in rates.items()}
                self._index_curriculum()
            case PoolChosen(rule=rule, dropped=dropped):
                state.pool_rule, state.dropped = rule, dropped
                self._index_curriculum()
            case _:
                raise AssertionError(f"unknown event {event}")

    def salvage(self, event: Event) -> Event | None:
        """What can be folded of an event when earlier ones were lost with a damaged record of the journal."""
        match event:
            case Leased(group=index, member=number):
                there = (index, number) in self.to_lease or (index, number) in self.to_score
            case Ended():
                there = Attempt(event.group, event.member, event.attempt) in self.running
            case Accepted(finished=finished):
                there = Attempt(finished.group, finished.member, finished.attempt) in self.running
            case GroupClosed(group=index):
                there = index in self.state.open and not any(m.running for m in self.state.open[index].members)
            case Stale(group=index, members=members):
                there = self._is_ready(index, members)
            case Trained(step=step):
                there = step in self.state.batches
            case EpisodeScored(version=version) | EvaluationEnded(version=version):
                there = version in self.state.held_out.evaluations
            case BatchFormed(step=step, items=items):
                return BatchFormed(step=step, items=[item for item in items if self._is_ready(*item)])
            case _:
                there = True
        return event if there else None

    def _is_ready(self, index: int, members: Sequence[int]) -> bool:
        wanted = (index, list(members))
        items = itertools.chain.from_iterable(self.state.ready.values())
        return any((item.group, [m.member for m in item.finished]) == wanted for item in items)

    def _fold_checkpoint(self, version: int, path: str) -> None:
        """Forget batches that no checkpoint needs; one more than is kept counts, as the newest may not be complete."""
        state = self.state
        state.checkpoints[version] = path
        newest = sorted(state.checkpoints)[-self.settings.checkpoint.keep - 1 :]
        state.checkpoints = {kept: state.checkpoints[kept] for kept in newest}
        if len(newest) > self.settings.checkpoint.keep:
            state.batches = {step: batch for step, batch in state.batches.items() if step > newest[0]}

    def _fold_opened(self, event: GroupOpened) -> None:
        state = self.state
        group = Group(
            index=event.group,
            task_id=event.task_id,
            oldest=state.served,
            members=[Member() for _ in range(event.size)],
            evaluates=event.evaluates,
        )
        state.open[event.group] = group
        state.next_group = event.group + 1
        state.draws = event.draws
        self._waiting(group).extend((event.group, number) for number in range(event.size))
        if not group.is_trained:
            evaluation = state.held_out.evaluations.get(group.evaluates)
            if evaluation is not None:
                evaluation.next_task = self._held_out_index.get(group.task_id, evaluation.next_task) + 1
            return
        if event.task_id in state.again:
            state.again.remove(event.task_id)
        state.tally.groups_opened += 1
        state.survivorship.dispatch(self.tasks.get(event.task_id), event.size)
        shift(self.places.open, state.served, event.size)

    def _fold_trained(self, batch: FormedBatch) -> None:
        batch.trained = True
        self.state.learner = max(self.state.learner, batch.step)
        for item in batch.items:
            self.state.tally.trained += len(item.finished)
            for member in item.finished:
                self.state.survivorship.train(self.tasks.get(item.task_id), member)
                self.state.audit.trained(item.task_id, member)

    def _fold_leased(self, event: Leased) -> None:
        group = self.state.open[event.group]
        member = group.members[event.member]
        member.attempts, member.running_version, member.actor = event.attempt, event.version, event.actor
        waiting = self._waiting(group)
        if waiting[0] == (event.group, event.member):
            waiting.popleft()
        else:  # read back behind a snapshot, which does not keep the order of members that wait
            waiting.remove((event.group, event.member))
        attempt = Attempt(event.group, event.member, event.attempt)
        self.running.add(attempt)
        if not group.is_trained:
            self.scoring.add(attempt)
            self.state.held_out.leased += 1
            return
        self.state.tally.leased += 1
        self.state.audit.leased(event)
        self._recount_oldest(group)

    def _fold_accepted(self, event: Accepted) -> None:
        finished = event.finished
        group = self.state.open[finished.group]
        member = group.members[finished.member]
        member.running_version, member.actor, member.finished = -1, "", finished
        attempt = Attempt(finished.group, finished.member, finished.attempt)
        self.running.remove(attempt)
        if group.task_id in self.state.set_aside:  # one that was still running shows that it can be run
            self._fold_given_back([group.task_id])
        if not group.is_trained:
            self.scoring.remove(attempt)
            self.state.held_out.finished += 1
            return
        tally = self.state.tally
        tally.accepted += 1
        tally.accepted_resolved += finished.resolved
        tally.accepted_reward += finished.reward
        tally.accepted_tokens += finished.num_tokens
        self.state.survivorship.finish(self.tasks.get(group.task_id), finished)
        self.state.audit.finished(group.task_id, finished)
        seen = self.state.rates.setdefault(group.task_id, PassRate())
        seen.num_runs += 1
        seen.num_resolved += finished.resolved
        if self.curriculum is not None:
            self.curriculum.update(group.task_id, seen)
        self._recount_oldest(group)

    def _fold_ended(self, event: Ended) -> None:
        group = self.state.open[event.group]
        member = group.members[event.member]
        member.running_version, member.actor = -1, ""
        attempt = Attempt(event.group, event.member, event.attempt)
        self.running.remove(attempt)
        member.excused += event.excused
        _count(group.failures, event.kind, 1)
        group.reason = event.reason or group.reason
        if group.is_trained:
            self._count_ended(event)
        else:
            self.scoring.remove(attempt)
            self.state.held_out.failed += 1
        if not self.may_try(group, member):
            return
        if event.excused:  # other tasks come first: is it the place?
            self._waiting(group).append((event.group, event.member))
        else:
            self._waiting(group).appendleft((event.group, event.member))

    def _count_ended(self, event: Ended) -> None:
        self.state.audit.ended(event)
        tally = self.state.tally
        _count(tally.ended, event.kind, 1)
        if event.kind == EXPIRED:
            tally.expired += 1
        else:
            tally.failed += 1

    def _fold_set_aside(self, task_id: str, reason: str) -> None:
        self.state.set_aside[task_id] = reason
        self.state.again = [task for task in self.state.again if task != task_id]
        self.to_lease = deque((i, n) for i, n in self.to_lease if self.state.open[i].task_id != task_id)
        self.to_score = deque((i, n) for i, n in self.to_score if self.state.open[i].task_id != task_id)
        self._index_curriculum()

    def _fold_given_back(self, task_ids: Sequence[str]) -> None:
        for task_id in task_ids:
            self.state.set_aside.pop(task_id, None)
        opened = set()
        for group in self.state.open.values():
            if group.task_id in task_ids:
                opened.add(group.task_id)
                queue = self._waiting(group)
                waiting = {number for index, number in queue if index == group.index}
                queue.extend(
                    (group.index, number)
                    for number, member in enumerate(group.members)
                    if number not in waiting and self.may_try(group, member)
                )
        if self.settings.phase == "eval":
            self.state.again.extend(task for task in task_ids if task not in opened)
        self._index_curriculum()

    def _fold_closed(self, event: GroupClosed) -> None:
        state = self.state
        group = state.open.pop(event.group)
        finished = [member.finished for member in group.members]
        state.closed[event.group] = [f.attempt if f else 0 for f in finished]
        why_short = f"{event.reason}: {group.reason}" if group.reason else event.reason
        if not group.is_trained:
            if None in finished and (evaluation := state.held_out.evaluations.get(group.evaluates)):
                evaluation.reasons[group.task_id] = why_short
            return
        shift(self.places.open, group.oldest, -len(group.members))
        kept = [f for f in finished if f and f.member in event.kept]
        parts = [[f] for f in kept] if event.split else [kept] if kept else []
        for part in parts:
            item = Item(
                group=event.group,
                task_id=group.task_id,
                oldest=min(f.oldest_version for f in part),
                places=1 if event.split else len(group.members),
                finished=part,
            )
            state.ready.setdefault(item.oldest, []).append(item)
            shift(self.places.ready, item.oldest, item.places)
        for name, count in event.removed.items():
            _count(state.tally.filtered, name, count)
        state.tally.groups_closed += 1
        if None in finished:
            state.tally.groups_short += 1
            state.audit.short[group.task_id] = why_short

    def _take(self, index: int, members: Sequence[int]) -> Item:
        """Remove an item from the ready ones."""
        for version, items in self.state.ready.items():
            for i, item in enumerate(items):
                if item.group == index and [m.member for m in item.finished] == list(members):
                    del items[i]
                    shift(self.places.ready, version, -item.places)
                    if not items:
                        del self.state.ready[version]
                    return item
        raise AssertionError(f"group {index}, members {members} are not ready")

    def _waiting(self, group: Group) -> deque[tuple[int, int]]:
        """Where its members wait to be leased."""
        return self.to_lease if group.is_trained else self.to_score

    def _recount_oldest(self, group: Group) -> None:
        """No token of the group is older than its running attempts' leases and its finished members' tokens."""
        known = [m.running_version for m in group.members if m.running]
        known += [m.finished.oldest_version for m in group.members if m.finished]
        oldest = min(known, default=group.oldest)
        if oldest != group.oldest:
            shift(self.places.open, group.oldest, -len(group.members))
            group.oldest = oldest
            shift(self.places.open, oldest, len(group.members))

    def _index_state(self) -> None:
        """Build everything that follows from the state."""
        for group in self.state.open.values():
            if group.is_trained:
                shift(self.places.open, group.oldest, len(group.members))
            for number, member in enumerate(group.members):
                if member.running:
                    self.running.add(Attempt(group.index, number, member.attempts))
                elif self.may_try(group, member):
                    self._waiting(group).append((group.index, number))
        self.scoring = {attempt for attempt in self.running if not self.state.open[attempt.group].is_trained}
        for version, items in self.state.ready.items():
            shift(self.places.ready, version, sum(item.places for item in items))
        self._index_curriculum()

    def _index_curriculum(self) -> None:
        dropped = set(self.state.dropped)
        replay = self.settings.replay
        pool = [task for task in self.tasks if task not in dropped]
        pool = [task for task in pool if task not in self.state.set_aside] or pool
        if self.settings.phase == "eval":
            return
        by_source: dict[str, list[str]] = {}
        for task in pool:
            by_source.setdefault(self.tasks[task].source if self.settings.tasks.sources else "", []).append(task)
        curricula = {
            name: Curriculum(tasks, self.state.rates, replay.group_size, self.settings.seed, replay.curriculum)
            for name, tasks in by_source.items()
        }
        if len(curricula) == 1:
            (self.curriculum,) = curricula.values()
        else:
            weights = {source.name: source.weight for source in self.settings.tasks.sources}
            self.curriculum = Mixture(curricula, weights, self.settings.seed)


def _count(counts: dict[str, int], name: str, count: int) -> None:
    counts[name] = counts.get(name, 0) + count
