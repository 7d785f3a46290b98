"""Random interleavings of all that can happen to the buffer, against a model that is slow and obviously right."""

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from learner.replay import events
from learner.replay.health import LEAST_TASKS
from learner.replay.leases import EXPIRED
from learner.replay.machine import Replay
from learner.replay.state import FormedBatch, State
from protocol.config import Settings
from protocol.messages import (
    BatchDone,
    BatchRequest,
    BatchWait,
    CheckpointMark,
    Fail,
    Heartbeat,
    LeaseRequest,
    Submit,
    TaskRef,
    Trajectory,
    Turn,
    VersionReady,
)

TASKS = [TaskRef(task_id=f"t{i}", source="micro", repository="r") for i in range(7)]
LEASE_S = 10.0


def run_settings(**changes):
    replay = {"group_size": 2, "batch": 4, "lease_s": LEASE_S, "max_attempts": 2} | changes.pop("replay", {})
    return Settings(
        **{"num_actors": 1000, "steps": 12, "max_staleness": 1, "replay": replay, "checkpoint": {"keep": 1}} | changes
    )


def trajectory(lease, reward=1.0, version=None, format_error=False):
    """Two tokens, one of them sampled."""
    version = lease.version if version is None else version
    return Trajectory(
        episode_id=lease.episode_id,
        lease_id=lease.lease_id,
        task_id=lease.task_id,
        group_id=lease.group_id,
        member=lease.member,
        attempt=lease.attempt,
        resolved=reward > 0,
        reward=reward,
        end_reason="submitted",
        turns=[Turn(start=1, end=2, format_error=format_error)],
        token_ids=np.zeros(2, np.int32),
        loss_mask=np.array([0, 1], np.uint8),
        logprobs=np.zeros(2, np.float32),
        versions=np.array([-1, version], np.int32),
        started_at=0.0,
        finished_at=1.0,
    )


class Episode:
    """The model's view of one lease."""

    def __init__(self, lease):
        self.lease = lease
        self.status = "running"
        self.heard_at = 0.0
        self.reward = 0.0
        self.version = -1
        self.excused = False


class NaiveBuffer:
    """Keeps every lease ever given in one list and counts by looking at all of them."""

    def __init__(self, config):
        self.config = config
        self.episodes = []
        self.batches = {}  # step -> episode ids
        self.served = 0
        self.failing = set()  # tasks, since anything was accepted; there is one place only
        self.set_aside = set()
        self.closed = set()  # groups: what is given back afterwards opens none again

    def note_closed(self):
        self.closed |= {group for group in self.groups() if not self.is_open(group)}

    def of_group(self, group_id):
        return [e for e in self.episodes if e.lease.group_id == group_id]

    def groups(self):
        return list(dict.fromkeys(e.lease.group_id for e in self.episodes))

    def is_open(self, group_id):
        """Some member runs, or may be leased (again)."""
        if group_id in self.closed:
            return False
        size, attempts = self.config.replay.group_size, self.config.replay.max_attempts
        for member in range(size):
            tries = [e for e in self.of_group(group_id) if e.lease.member == member]
            may_try = sum(not e.excused for e in tries) < attempts and not self.is_set_aside(group_id)
            if not any(e.status == "accepted" for e in tries) and (
                may_try or any(e.status == "running" for e in tries)
            ):
                return True
        return False

    def is_set_aside(self, group_id):
        return self.of_group(group_id)[0].lease.task_id in self.set_aside

    def accepted(self, group_id):
        return [e for e in self.of_group(group_id) if e.status == "accepted"]

    def useful(self, group_id):
        """A closed group that may be trained on."""
        rewards = [e.reward for e in self.accepted(group_id)]
        return len(rewards) >= 2 and len(set(rewards)) > 1

    def in_batches(self):
        return {episode for batch in self.batches.values() for episode in batch}

    def is_stale(self, group_id, step):
        return any(step - 1 - e.version > self.config.max_staleness for e in self.accepted(group_id))

    def waiting_members(self):
        """Members of open groups that nobody runs and that may be leased."""
        size, attempts, count = self.config.replay.group_size, self.config.replay.max_attempts, 0
        for group in set(self.groups()) - self.closed:
            for member in range(size):
                tries = [e for e in self.of_group(group) if e.lease.member == member]
                over = any(e.status in ("accepted", "running") for e in tries) or self.is_set_aside(group)
                count += not over and sum(not e.excused for e in tries) < attempts
        return count


class ReplayMachine(RuleBasedStateMachine):
    """Drives the real buffer and the model side by side."""

    config = run_settings()
    leases = Bundle("leases")

    @initialize()
    def begin(self):
        self.now = 0.0
        self.journal = []
        self.replay = Replay(self.config, TASKS)
        self.model = NaiveBuffer(self.config)
        self.record(self.replay.start(self.now))
        self.learner = 0  # the learner's version
        self.checkpoints = [0]
        self.stale_groups = set()
        self.went_back = False  # a generator lagged, or old weights are served again: tokens older than expected

    def record(self, happened):
        if happened:
            self.journal.append(events.encode(happened))
        for event in happened:
            if isinstance(event, events.TaskSetAside):
                of_task = [g for g in self.model.groups() if self.model.of_group(g)[0].lease.task_id == event.task_id]
                tried = [{e.status for e in self.model.of_group(group)} for group in of_task]
                assert any(not statuses & {"running", "accepted"} for statuses in tried)
                self.model.set_aside.add(event.task_id)
                self.model.note_closed()
            if isinstance(event, events.TasksGivenBack):
                self.model.set_aside -= set(event.task_ids)
            if isinstance(event, events.Stale):
                assert self.went_back, "a group was thrown away for being late"
                self.stale_groups.add(f"g{event.group}")
        self.model.note_closed()

    def ask(self, message):
        outcome = self.replay.handle(message, self.now, position=len(self.journal))
        self.record(outcome.events)
        return outcome.reply

    # --- actors

    @rule(target=leases, capacity=st.integers(0, 5))
    def lease(self, capacity):
        before, waiting = self.places_taken(), self.model.waiting_members()
        reply = self.ask(LeaseRequest(actor="a", capacity=capacity))
        size, bound = self.config.replay.group_size, self.bound()
        given = []
        for lease in reply.leases:
            tries = [e for e in self.model.episodes if e.lease.episode_id == lease.episode_id]
            assert all(e.status in ("failed", "expired") for e in tries), "a member is run by two actors"
            assert lease.attempt == len(tries) + 1
            assert sum(not e.excused for e in tries) < self.config.replay.max_attempts
            assert lease.task_id not in self.model.set_aside
            assert lease.version == self.model.served
            episode = Episode(lease)
            episode.heard_at = self.now
            if not self.model.of_group(lease.group_id):
                assert before + size <= bound, "a group was opened past the staleness bound"
                before += size
            self.model.episodes.append(episode)
            given.append(episode)
        if len(self.model.failing) >= LEAST_TASKS:
            assert len(given) <= 1, "a place out of order is given one lease at a time"
        elif len(self.model.set_aside) == len(TASKS):
            assert not given or waiting
        elif len(given) < capacity and not reply.done:
            assert waiting <= len(given)
            assert before + size > bound, f"nothing was leased though there is room: {reply.waiting_for}"
            assert reply.waiting_for
        return multiple(*given)

    def bound(self):
        return min(self.model.served + self.config.max_staleness + 1, self.config.steps) * self.config.replay.batch

    def places_taken(self):
        """`running + collected` over the run, whole groups counted, without those that filters removed."""
        trained = len(self.model.batches) * self.config.replay.batch
        in_batches = self.model.in_batches()
        groups = 0
        for group in self.model.groups():
            if self.model.is_open(group):
                groups += 1
            elif self.model.useful(group) and group not in self.stale_groups:
                groups += self.model.accepted(group)[0].lease.episode_id not in in_batches
        return trained + groups * self.config.replay.group_size

    @rule(episode=leases, reward=st.sampled_from([0.0, 1.0]), newer=st.integers(0, 2), lag=st.integers(0, 9))
    def submit(self, episode, reward, newer, lag):
        version = min(episode.lease.version + newer, self.model.served)
        if lag == 0:  # a generator that had not adopted the weights yet
            version = max(version - 1, 0)
            self.went_back = True
        reply = self.ask(Submit(actor="a", trajectory=trajectory(episode.lease, reward, version)))
        expected = {"running": "accepted", "accepted": "duplicate"}.get(episode.status, "late")
        assert reply.status == expected
        if episode.status == "running":
            episode.status, episode.reward, episode.version = "accepted", reward, version
            self.model.failing.clear()
            self.model.set_aside.discard(episode.lease.task_id)

    @rule(episode=leases)
    def fail(self, episode):
        if episode.status == "running":
            episode.status = "failed"
            self.model.failing.add(episode.lease.task_id)
            tries = [e for e in self.model.episodes if e.lease.episode_id == episode.lease.episode_id]
            few = sum(e.excused for e in tries) < self.config.replay.max_attempts
            episode.excused = few and len(self.model.failing) >= LEAST_TASKS
        self.ask(Fail(actor="a", lease_id=episode.lease.lease_id, kind="sandbox.died", reason="gone"))

    @rule(episode=leases)
    def heartbeat(self, episode):
        reply = self.ask(Heartbeat(actor="a", lease_ids=[episode.lease.lease_id]))
        assert (reply.unknown == []) == (episode.status == "running")
        episode.heard_at = self.now

    @rule(seconds=st.floats(0.1, 12))
    def wait(self, seconds):
        self.now += seconds
        for episode in self.model.episodes:
            if episode.status == "running" and episode.heard_at + LEASE_S <= self.now:
                episode.status = "expired"
        self.record(self.replay.tick(self.now))

    # --- learner

    @rule()
    def step(self):
        """Ask for the next batch; train on it if there is one."""
        step = self.learner + 1
        if step > self.config.steps:
            return
        reply = self.ask(BatchRequest(learner="l", version=self.learner))
        if isinstance(reply, BatchWait):
            assert step not in self.model.batches
            self.check_wait(step)
            return
        assert isinstance(reply, FormedBatch)
        members = [f"g{m.group}/{m.member}" for item in reply.items for m in item.finished]
        if step in self.model.batches:
            assert members == self.model.batches[step], "another batch for the same step"
        else:
            self.check_batch(step, reply, members)
            self.model.batches[step] = members
        self.ask(BatchDone(learner="l", batch_id=step, version=step))
        self.learner = step

    def check_batch(self, step, batch, members):
        assert len(set(members)) == len(members)
        assert not set(members) & self.model.in_batches(), "trained twice"
        assert len(batch.items) * self.config.replay.group_size == self.config.replay.batch
        for item in batch.items:
            group = f"g{item.group}"
            assert not self.model.is_open(group)
            assert self.model.useful(group)
            assert not self.model.is_stale(group, step), "staler than the bound"
            assert [f"g{m.group}/{m.member}" for m in item.finished] == sorted(
                e.lease.episode_id for e in self.model.accepted(group)
            )

    def ready_groups(self, step):
        in_batches = self.model.in_batches()
        return [
            group
            for group in self.model.groups()
            if not self.model.is_open(group)
            and self.model.useful(group)
            and not self.model.is_stale(group, step)
            and self.model.accepted(group)[0].lease.episode_id not in in_batches
        ]

    def check_wait(self, step):
        """Waiting is right if groups are missing, or if an open group would come too late after this batch."""
        num_groups = self.config.replay.batch // self.config.replay.group_size
        ready = self.ready_groups(step)
        if len(ready) < num_groups:
            return
        assert any(self.model.is_open(group) for group in self.model.groups()), "it waits for nothing"

    @rule()
    def serve_newest(self):
        if self.learner != self.model.served:
            self.went_back |= self.learner < self.model.served
            self.ask(VersionReady(version=self.learner))
            self.model.served = self.learner

    @rule()
    def checkpoint(self):
        self.ask(CheckpointMark(version=self.learner, path="c"))
        self.checkpoints = sorted({*self.checkpoints, self.learner})[-2:]

    @rule(which=st.integers(0, 1))
    def learner_falls_back(self, which):
        """The learner crashed and comes back from a checkpoint: it is given the same batches again."""
        self.learner = self.checkpoints[min(which, len(self.checkpoints) - 1)]

    # --- the process

    @rule(snapshot=st.booleans())
    def crash(self, snapshot):
        """Everything but the journal is lost."""
        before = msgspec.msgpack.encode(self.replay.state)
        if snapshot:
            self.journal = [msgspec.msgpack.decode(before, type=State)]
        replay = Replay(self.config, TASKS)
        for record in self.journal:
            if isinstance(record, State):
                replay = Replay(self.config, TASKS, msgspec.convert(msgspec.to_builtins(record), State))
                continue
            for event in events.decode(record):
                replay.ledger.fold(event)
        assert msgspec.msgpack.encode(replay.state) == before
        self.replay = replay
        assert self.replay.start(self.now) == []
        self.model.failing.clear()  # which places work is found out anew
        for episode in self.model.episodes:
            episode.heard_at = self.now

    @invariant()
    def every_lease_has_one_end(self):
        if not hasattr(self, "replay"):
            return
        count = dict.fromkeys(("running", "accepted", "failed", "expired"), 0)
        for episode in self.model.episodes:
            count[episode.status] += 1
        tally = self.replay.state.tally
        assert tally.leased == len(self.model.episodes)
        assert (self.replay.num_running, tally.accepted, tally.failed, tally.expired) == tuple(count.values())
        assert tally.ended.get(EXPIRED, 0) == count["expired"]

    def teardown(self):
        """Left alone with willing actors, the run comes to its end."""
        if not hasattr(self, "replay"):
            return
        for _ in range(500):
            for episode in [e for e in self.model.episodes if e.status == "running"]:
                self.submit(episode, float(episode.lease.member % 2), 0, 1)
            self.step()
            self.serve_newest()
            self.now += 25.0  # past the longest pause of a place that was out of order
            for episode in self.model.episodes:
                episode.heard_at = self.now if episode.status == "running" else episode.heard_at
            self.lease(5)
            if self.learner == self.config.steps or "every task is set aside" in self.replay.given_up(self.now):
                return
        raise AssertionError(f"the run does not end: {self.replay.waiting_for}")


def interleave(max_staleness, num_runs):
    class Machine(ReplayMachine):
        config = run_settings(max_staleness=max_staleness)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=num_runs, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_random_interleavings_against_the_naive_model(max_staleness):
    interleave(max_staleness, num_runs=25)


@pytest.mark.slow
def test_many_random_interleavings_against_the_naive_model():
    interleave(max_staleness=2, num_runs=100)


def test_a_group_that_closes_short_says_why():
    replay = Replay(run_settings(replay={"group_size": 3, "batch": 3}), TASKS)
    replay.start(0.0)
    first, *others = replay.handle(LeaseRequest(actor="a", capacity=3), 0.0).reply.leases
    for lease in others:
        replay.handle(Submit(actor="a", trajectory=trajectory(lease, float(lease.member == 1))), 0.0)
    replay.handle(Fail(actor="a", lease_id=first.lease_id, kind="sandbox.died", reason="gone"), 0.0)
    replay.handle(LeaseRequest(actor="a", capacity=1), 0.0)
    closed = [event for event in replay.tick(LEASE_S + 1) if isinstance(event, events.GroupClosed)]
    assert [event.reason for event in closed] == ["1 of 3 never finished: lease.expired x1, sandbox.died x1"]
    assert closed[0].kept == [1, 2]
