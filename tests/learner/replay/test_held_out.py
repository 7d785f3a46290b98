"""Evaluation beside training: what it may take, that it is whole, and that nothing of it reaches training."""

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from learner.held_out import SHARE, HeldOut
from learner.replay import events
from learner.replay.machine import Replay
from learner.replay.state import FormedBatch, State
from protocol.messages import BatchDone, BatchRequest, Fail, LeaseRequest, Submit, TaskRef, VersionReady
from tests.learner.replay.test_machine import TASKS, run_settings, trajectory

HELD_OUT = [TaskRef(task_id=f"h{i}", source="micro", repository="r") for i in range(3)]
EVERY, RUNS = 3, 2
CONFIG = run_settings(eval={"every": EVERY, "runs_in_training": RUNS}, num_actors=20, max_staleness=2)
BATCH = CONFIG.replay.batch


def without_evaluations(journal):
    """The events that would have happened had there been no evaluation."""
    evaluated = {e.group for e in journal if isinstance(e, events.GroupOpened) and e.evaluates >= 0}
    for event in journal:
        finished = getattr(event, "finished", None)
        group = finished.group if finished is not None else getattr(event, "group", None)
        if group in evaluated or isinstance(
            event, events.EvaluationBegun | events.EpisodeScored | events.EvaluationEnded
        ):
            continue
        if isinstance(event, events.TaskSetAside) and event.task_id.startswith("h"):
            continue
        if isinstance(event, events.TasksGivenBack):
            event = events.TasksGivenBack(task_ids=[t for t in event.task_ids if not t.startswith("h")])
        yield event


class Beside(RuleBasedStateMachine):
    """The buffer leads evaluations while it trains; what is expected is counted over all that was ever leased."""

    leases = Bundle("leases")

    @initialize()
    def begin(self):
        self.now = 0.0
        self.journal = []
        self.given = []  # every lease of an evaluation
        self.status = {}  # lease id -> running, accepted, failed
        self.rewards = {}
        self.since_batch = 0
        self.learner = self.served = 0
        self.replay = Replay(CONFIG, TASKS, held_out=HELD_OUT)
        self.journal += self.replay.start(self.now)

    def ask(self, message):
        outcome = self.replay.handle(message, self.now, position=len(self.journal))
        self.journal += outcome.events
        return outcome.reply

    def running(self):
        return [lease for lease in self.given if self.status[lease.lease_id] == "running"]

    @rule(target=leases, capacity=st.integers(0, 12))
    def lease(self, capacity):
        reply = self.ask(LeaseRequest(actor="a", capacity=capacity))
        trained_last = [lease.evaluates < 0 for lease in reply.leases]
        for lease in reply.leases:
            self.status[lease.lease_id] = "running"
            assert (lease.evaluates >= 0) == lease.task_id.startswith("h")
            assert lease.sampling.version == lease.evaluates, (
                "evaluations name their version, training takes the newest"
            )
            if lease.evaluates >= 0:
                assert lease.version == self.served >= lease.evaluates
                self.given.append(lease)
                self.since_batch += 1
        if len(self.running()) > max(1, CONFIG.num_actors * SHARE) and trained_last and not trained_last[-1]:
            # past its share: nothing to train on could be leased
            assert self.replay.num_places + CONFIG.replay.group_size > self.replay.most_places
        assert self.since_batch <= BATCH, "an evaluation took more than a batch between two batches"
        return multiple(*reply.leases)

    @rule(lease=leases, resolved=st.booleans(), lag=st.integers(0, 2))
    def submit(self, lease, resolved, lag):
        version = min(lease.version + lag, self.served)
        reply = self.ask(Submit(actor="a", trajectory=trajectory(lease, float(resolved), version)))
        if self.status[lease.lease_id] == "running":
            assert reply.status == "accepted"
            self.status[lease.lease_id] = "accepted"
            self.rewards[lease.lease_id] = (resolved, version)

    @rule(lease=leases)
    def fail(self, lease):
        if self.status[lease.lease_id] == "running":
            self.status[lease.lease_id] = "failed"
        self.ask(Fail(actor="a", lease_id=lease.lease_id, kind="sandbox.died", reason="gone"))

    @rule(resolved=st.booleans())
    def finish_all(self, resolved):
        for lease in [*self.replay.ledger.running]:
            described = self.replay._describe(lease)
            version = described.version
            self.ask(Submit(actor="a", trajectory=trajectory(described, float(resolved != described.member % 2))))
            self.status[described.lease_id] = "accepted"
            self.rewards[described.lease_id] = (resolved != described.member % 2, version)

    @rule()
    def tick(self):
        self.now += 0.25
        self.journal += self.replay.tick(self.now)
        ended = {f"g{e.group}/{e.member}#{e.attempt}" for e in self.journal if isinstance(e, events.Ended)}
        for lease_id in ended & self.status.keys():  # the clock's among them
            self.status[lease_id] = "failed"

    @rule()
    def step(self):
        if self.learner == CONFIG.steps:
            return
        reply = self.ask(BatchRequest(learner="l", version=self.learner))
        if isinstance(reply, FormedBatch):
            assert all(item.task_id.startswith("t") for item in reply.items), "trained on a held-out task"
            self.learner += 1
            self.since_batch = 0
            self.ask(BatchDone(learner="l", batch_id=self.learner, version=self.learner))

    @rule()
    def serve(self):
        self.ask(VersionReady(version=self.learner))
        self.served = self.learner

    @rule()
    def restart(self):
        replay = Replay(CONFIG, TASKS, held_out=HELD_OUT)
        for event in events.decode(events.encode(self.journal)):
            replay.ledger.fold(event)
        assert replay.state == self.replay.state
        snapshot = msgspec.msgpack.decode(msgspec.msgpack.encode(replay.state), type=State)
        again = Replay(CONFIG, TASKS, snapshot, HELD_OUT)
        assert again.ledger.running == self.replay.ledger.running
        assert again.ledger.scoring == self.replay.ledger.scoring
        assert sorted(again.ledger.to_score) == sorted(self.replay.ledger.to_score)
        self.replay = replay
        self.journal += replay.start(self.now)

    @invariant()
    def nothing_of_it_reaches_training(self):
        plain = Replay(CONFIG, TASKS)
        for event in without_evaluations(self.journal):
            plain.ledger.fold(event)
        theirs, ours = plain.state, self.replay.state
        for name in ("ready", "batches", "last_batch", "rates", "tally", "survivorship", "audit", "draws"):
            assert getattr(theirs, name) == getattr(ours, name), name
        assert plain.ledger.places.open == self.replay.ledger.places.open
        assert plain.ledger.places.ready == self.replay.ledger.places.ready
        assert plain.ledger.to_lease == self.replay.ledger.to_lease
        assert sorted(plain.ledger.live_positions()) == sorted(self.replay.ledger.live_positions())

    @invariant()
    def it_takes_no_more_than_a_batch(self):
        assert len(self.running()) == len(self.replay.ledger.scoring) <= BATCH

    @invariant()
    def every_score_is_that_of_an_accepted_episode(self):
        for version, evaluation in self.replay.state.held_out.evaluations.items():
            accepted = [
                (lease.task_id, lease.member, *self.rewards[lease.lease_id])
                for lease in self.given
                if lease.evaluates == version and self.status[lease.lease_id] == "accepted"
            ]
            found = [(each.task_id, each.run, each.resolved, each.newest_version) for each in evaluation.attempts]
            assert sorted(found) == sorted(accepted)
            if evaluation.is_over:
                self.is_whole(version, evaluation, found)

    def is_whole(self, version, evaluation, found):
        assert not any(lease.evaluates == version for lease in self.running())
        asked = {(task.task_id, run) for task in HELD_OUT for run in range(RUNS)}
        missing = asked - {(task, run) for task, run, _, _ in found}
        tried = {lease.task_id for lease in self.given if self.status[lease.lease_id] == "failed"}
        assert {task for task, _ in missing} <= tried, "a task that never failed has no score"
        assert len(found) == len(asked) - len(missing), "an attempt was scored twice"


TestBeside = Beside.TestCase
TestBeside.settings = settings(
    max_examples=60, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)


def play(replay, num_steps, until=400):
    """Steps of a buffer whose episodes all end at once, every version served at once; leases of evaluations by step."""
    taken, now, version = [], 0.0, 0
    taken_now = 0
    for _ in range(until):
        now += 0.25
        replay.tick(now)
        for lease in replay.handle(LeaseRequest(actor="a", capacity=8), now).reply.leases:
            taken_now += lease.evaluates >= 0
            replay.handle(Submit(actor="a", trajectory=trajectory(lease, float(lease.member % 2))), now)
        if isinstance(replay.handle(BatchRequest(learner="l", version=version), now).reply, FormedBatch):
            version += 1
            replay.handle(BatchDone(learner="l", batch_id=version, version=version), now)
            replay.handle(VersionReady(version=version), now)
            taken.append(taken_now)
            taken_now = 0
        if version == num_steps:
            break
    return taken


def test_it_begins_with_the_first_version_and_behind_every_multiple_and_attempts_every_task():
    replay = Replay(CONFIG, TASKS, held_out=HELD_OUT)
    taken = play(replay, CONFIG.steps)
    over = [each for each in replay.state.held_out.evaluations.values() if each.is_over]
    assert over[0].version == 0
    assert [each.version // EVERY for each in over] == list(range(len(over)))
    assert len(over) >= CONFIG.steps // EVERY - 1
    asked = sorted((task.task_id, run) for task in HELD_OUT for run in range(RUNS))
    assert all(sorted((each.task_id, each.run) for each in one.attempts) == asked for one in over)
    assert len(taken) == CONFIG.steps
    assert sum(taken) >= len(over) * len(asked)
    assert max(taken) <= BATCH


def test_without_the_setting_or_without_tasks_there_is_none():
    for config, held_out in ((run_settings(), HELD_OUT), (CONFIG, [])):
        replay = Replay(config, TASKS, held_out=held_out)
        assert sum(play(replay, 4)) == 0
        assert not replay.state.held_out.evaluations


def test_a_task_that_cannot_be_run_is_named_and_ends_nothing():
    replay = Replay(CONFIG, TASKS, held_out=HELD_OUT)
    now = 0.0
    for _ in range(300):
        now += 0.25
        replay.tick(now)
        for lease in replay.handle(LeaseRequest(actor="a", capacity=8), now).reply.leases:
            if lease.task_id == "h1":
                replay.handle(Fail(actor="a", lease_id=lease.lease_id, kind="task.bad", reason="no such file"), now)
            else:
                replay.handle(Submit(actor="a", trajectory=trajectory(lease, float(lease.member % 2))), now)
        if replay.handle(BatchRequest(learner="l", version=replay.state.last_batch), now).reply and (
            replay.state.held_out.current is None and replay.state.held_out.evaluations
        ):
            break
    first = replay.state.held_out.evaluations[0]
    assert first.is_over
    assert {each.task_id for each in first.attempts} == {"h0", "h2"}
    assert "no such file" in first.reasons["h1"]
    assert "h1" in replay.state.set_aside
    assert replay.tasks_left == len(TASKS), "a held-out task is none of those that are drawn"
    assert not replay.state.audit.failed_by_kind


@pytest.mark.parametrize(
    ("begun", "served", "due"),
    [([], 0, True), ([], 7, True), ([0], 2, False), ([0], 3, True), ([4], 5, False), ([4], 6, True), ([6], 3, False)],
)
def test_when_one_is_due(begun, served, due):
    held_out = HeldOut()
    for version in begun:
        held_out.begin(version)
        held_out.evaluations[version].is_over = True
    assert held_out.is_due(served, 3) is due


def test_one_under_way_is_finished_before_the_next_begins():
    held_out = HeldOut()
    held_out.begin(0)
    assert not held_out.is_due(50, 3)
