"""When a task is set aside, when a place is out of order, and when the run ends for it."""

import msgspec
import pytest

from learner.replay.health import LEAST_TASKS
from learner.replay.machine import Replay
from learner.replay.service.account import account
from protocol.config import Settings
from protocol.messages import BatchDone, BatchRequest, Fail, Heartbeat, LeaseRequest, Submit, TaskRef
from tests.learner.replay.test_machine import trajectory as answer_of

TASKS = [TaskRef(task_id=f"t{i}", source="micro", repository="r") for i in range(9)]


def trajectory(lease, reward):
    """As the machine's tests make it; a zero has its reason."""
    return msgspec.structs.replace(answer_of(lease, reward), zero_because="" if reward else "tests")


class Buffer:
    """A buffer and the episodes that it gave."""

    def __init__(self, tasks=TASKS, **changes):
        replay = {"group_size": 2, "batch": 16, "max_attempts": 3, "give_up_s": 100} | changes.pop("replay", {})
        self.replay = Replay(Settings(**{"num_actors": 99, "steps": 9, "replay": replay} | changes), tasks)
        self.replay.start(0.0)
        self.now = 0.0

    def lease(self, capacity, place="a"):
        reply = self.replay.handle(LeaseRequest(actor=place, capacity=capacity), self.now).reply
        return reply.leases

    def fail(self, lease, kind="sandbox.start", place="a"):
        self.replay.handle(Fail(actor=place, lease_id=lease.lease_id, kind=kind, reason="no daemon"), self.now)

    def finish(self, lease, place="a"):
        done = trajectory(lease, float(lease.member % 2))
        self.replay.handle(Submit(actor=place, trajectory=done), self.now)

    def beat(self, leases, place="a"):
        names = [lease.lease_id for lease in leases]
        self.replay.handle(Heartbeat(actor=place, lease_ids=names), self.now)

    def play(self, bad, seconds, kind="sandbox.start", places=("a",)):
        """Everything leased ends at once; tasks that are `bad` fail."""
        end = self.now + seconds
        while self.now < end and not self.replay.done and not self.replay.given_up(self.now):
            self.now += 1.0
            for place in places:
                for lease in self.lease(4, place):
                    self.fail(lease, kind, place) if lease.task_id in bad else self.finish(lease, place)
            self.replay.tick(self.now)


def evaluation(**changes):
    return Buffer(phase="eval", eval={"runs": 2}, **changes)


def test_bad_tasks_of_an_evaluation_are_named_and_the_others_go_on():
    buffer = evaluation()
    buffer.play({"t1", "t5"}, seconds=300)
    assert buffer.replay.done and not buffer.replay.given_up(buffer.now)
    assert buffer.replay.state.tally.accepted == 2 * 7
    assert buffer.replay.state.set_aside == dict.fromkeys(("t1", "t5"), "sandbox.start x6: no daemon")


def test_a_task_that_says_itself_that_it_is_unusable_needs_fewer_attempts():
    buffer = evaluation()
    buffer.play({"t1"}, seconds=300, kind="task.image")
    assert buffer.replay.done
    assert buffer.replay.state.tally.failed < 6
    assert buffer.replay.state.set_aside["t1"].startswith("task.image x")


def test_an_outage_uses_up_nothing_and_is_over_when_something_works():
    buffer = evaluation()
    buffer.play((), seconds=1)
    everything = {task.task_id for task in TASKS}
    buffer.play(everything, seconds=60)
    assert buffer.replay.outage and "no daemon" in buffer.replay.waiting_for
    assert not buffer.replay.given_up(buffer.now)
    buffer.play((), seconds=100)
    assert buffer.replay.outage is None and buffer.replay.done
    assert buffer.replay.state.tally.accepted == 2 * len(TASKS)
    assert not buffer.replay.state.set_aside


def test_an_outage_ends_the_run_after_a_while():
    buffer = evaluation()
    buffer.play((), seconds=1)
    buffer.play({task.task_id for task in TASKS}, seconds=130)
    assert "Given up after 100 s" in buffer.replay.given_up(buffer.now)


def test_a_run_in_which_nothing_ever_worked_ends_sooner():
    buffer = Buffer()
    buffer.play({task.task_id for task in TASKS}, seconds=25)
    assert "Given up after 10 s" in buffer.replay.given_up(buffer.now)


def test_one_broken_place_costs_no_task_and_no_run():
    buffer = Buffer(num_actors=99)
    for _ in range(40):
        buffer.now += 1.0
        for lease in buffer.lease(4, "broken"):
            buffer.fail(lease, place="broken")
        for lease in buffer.lease(2, "good"):
            buffer.finish(lease, place="good")
    assert buffer.replay.outage is None
    assert not buffer.replay.state.set_aside
    assert buffer.replay.state.audit.excused


EVERYTHING = {task.task_id for task in TASKS}
MANY = [f"place-{number}" for number in range(4)]


@pytest.mark.parametrize("phase", ["eval", "rl"])
def test_an_outage_uses_up_nothing_however_many_places_find_it_out(phase):
    patience = {"give_up_s": 500}
    buffer = evaluation(replay=patience) if phase == "eval" else Buffer(tasks=TASKS[:2], replay=patience)
    buffer.play((), seconds=1)
    buffer.play(EVERYTHING, seconds=400, places=MANY)
    assert buffer.replay.outage and not buffer.replay.done and not buffer.replay.given_up(buffer.now)
    buffer.play((), seconds=20, places=MANY)
    assert not buffer.replay.outage and not buffer.replay.state.set_aside
    if phase == "eval":
        assert buffer.replay.done and buffer.replay.state.tally.accepted == 2 * len(TASKS)


@pytest.mark.parametrize("phase", ["eval", "rl"])
def test_an_outage_that_many_places_find_out_ends_the_run_after_the_same_while(phase):
    patience = {"give_up_s": 500}
    buffer = evaluation(replay=patience) if phase == "eval" else Buffer(tasks=TASKS[:2], replay=patience)
    buffer.play((), seconds=1)
    buffer.play(EVERYTHING, seconds=2000, places=MANY)
    assert 500 <= buffer.now < 1000, "whether it is given up or, of an evaluation, all that is left is set aside"
    assert "Given up after 500 s" in buffer.replay.given_up(buffer.now) or buffer.replay.done


@pytest.mark.parametrize("places", [("a",), MANY])
def test_an_evaluation_whose_last_tasks_are_bad_ends_with_the_others_scored(places):
    buffer = evaluation()
    bad = {task.task_id for task in TASKS[-LEAST_TASKS:]}
    buffer.play(bad, seconds=2000, places=places)
    assert buffer.replay.done and not buffer.replay.given_up(buffer.now)
    assert buffer.replay.state.tally.accepted == 2 * (len(TASKS) - LEAST_TASKS)
    assert buffer.replay.state.set_aside.keys() == bad


def test_one_broken_place_costs_no_task_while_the_others_are_full():
    buffer = Buffer()
    long = buffer.lease(1, "good")
    for _ in range(1000):
        buffer.now += 5.0
        buffer.beat(long, "good")
        for lease in buffer.lease(4, "broken"):
            buffer.fail(lease, place="broken")
        buffer.replay.tick(buffer.now)
        assert buffer.replay.outage is None and not buffer.replay.given_up(buffer.now), "one is at work"
    assert not buffer.replay.state.set_aside


def test_an_outage_begins_when_the_last_place_stops_working():
    buffer = Buffer()
    for _ in range(300):
        buffer.now += 1.0
        for lease in buffer.lease(4, "broken"):
            buffer.fail(lease, place="broken")
        for lease in buffer.lease(1, "good"):
            buffer.finish(lease, place="good")
    for _ in range(130):  # the good one is not heard of any more
        buffer.now += 1.0
        for lease in buffer.lease(4, "broken"):
            buffer.fail(lease, place="broken")
        buffer.replay.tick(buffer.now)
    assert buffer.replay.outage and not buffer.replay.given_up(buffer.now)
    buffer.play(EVERYTHING, seconds=130, places=["broken"])
    assert "Given up after 100 s" in buffer.replay.given_up(buffer.now)


def test_the_last_tasks_of_a_run_are_not_lost_to_an_outage_either():
    buffer = Buffer(replay={"curriculum": False, "batch": 1000})
    bad = {task.task_id for task in TASKS[LEAST_TASKS - 1 :]}
    buffer.play(bad, seconds=60, kind="task.image")
    assert buffer.replay.state.set_aside.keys() == bad
    buffer.play(EVERYTHING, seconds=90)
    assert buffer.replay.outage and not buffer.replay.given_up(buffer.now)
    buffer.play((), seconds=20)
    assert not buffer.replay.outage and buffer.replay.state.set_aside.keys() == bad


def test_what_an_evaluation_finished_shows_that_things_worked():
    buffer = Buffer()
    buffer.replay.state.held_out.finished = 1
    buffer.play(EVERYTHING, seconds=60)
    assert buffer.replay.outage and not buffer.replay.given_up(buffer.now)


def test_a_training_run_goes_on_without_its_bad_tasks_and_ends_when_none_is_left():
    buffer = Buffer(replay={"curriculum": False, "batch": 18})
    buffer.play({"t0", "t1", "t2"}, seconds=60)
    assert set(buffer.replay.state.set_aside) == {"t0", "t1", "t2"}
    assert not buffer.replay.given_up(buffer.now)
    alone = Buffer(tasks=TASKS[:2])
    alone.play({"t0", "t1"}, seconds=30, kind="task.image")
    assert "every task is set aside" in alone.replay.given_up(alone.now)


@pytest.mark.parametrize("num", [1, LEAST_TASKS + 3])
def test_a_restart_knows_what_was_set_aside(num):
    buffer = Buffer(tasks=TASKS[:num])
    buffer.play({"t0"}, seconds=30, kind="task.image")
    again = Replay(buffer.replay.settings, TASKS[:num], buffer.replay.state)
    assert again.start(buffer.now) == []
    assert again.state.set_aside.keys() == {"t0"}
    leased = again.handle(LeaseRequest(actor="a", capacity=50), buffer.now).reply.leases
    assert all(lease.task_id != "t0" for lease in leased)


def test_the_account_names_every_task_that_was_not_trained_and_every_zero():
    buffer = Buffer(replay={"curriculum": False, "batch": 2})
    first, second = buffer.lease(2)
    buffer.fail(first)
    buffer.finish(second)
    (first,) = buffer.lease(1)
    buffer.finish(first)
    buffer.replay.handle(BatchRequest(learner="l", version=0), buffer.now)
    buffer.replay.handle(BatchDone(learner="l", batch_id=1, version=1), buffer.now)
    said = account(buffer.replay)
    assert (said.leased, said.accepted, said.trained, said.audit.retries) == (3, 2, 2, 1)
    assert said.audit.failed_by_kind == {"sandbox.start": 1}
    assert said.audit.zeros == {"tests": 1} and said.audit.fake_zeros == 0
    assert said.audit.trained_by_length == {2: 2}
    assert sorted(said.not_trained["never drawn"] + [first.task_id]) == sorted(task.task_id for task in TASKS)


def test_a_zero_without_a_reason_is_counted_as_fake():
    buffer = Buffer()
    (lease,) = buffer.lease(1)
    done = msgspec.structs.replace(trajectory(lease, 0.0), zero_because="")
    buffer.replay.handle(Submit(actor="a", trajectory=done), 0.0)
    assert account(buffer.replay).audit.fake_zeros == 1
