"""What the buffer tells of the leases to come: these tasks, before others."""

from __future__ import annotations

import pytest

from learner.replay.machine import Replay
from protocol.config import Settings
from protocol.messages import LeaseReply, LeaseRequest, TaskRef

TASKS = [TaskRef(task_id=f"t{i}", source="micro", repository="r") for i in range(40)]


def buffer(**changes: object) -> Replay:
    given = {"num_actors": 1000, "steps": 50, "replay": {"group_size": 2, "batch": 4}, "max_staleness": 8, **changes}
    replay = Replay(Settings.model_validate(given), TASKS)
    replay.start(0.0)
    return replay


def leased(replay: Replay, capacity: int) -> LeaseReply:
    reply = replay.handle(LeaseRequest(actor="a", capacity=capacity), 1.0).reply
    assert isinstance(reply, LeaseReply)
    return reply


def test_an_evaluation_goes_through_its_tasks_in_order() -> None:
    replay = buffer(phase="eval", eval={"runs": 2})
    reply = leased(replay, 3)
    assert [lease.task_id for lease in reply.leases] == ["t0", "t0", "t1"]
    assert reply.soon == tuple(f"t{i}" for i in range(1, 10)), "a member of t1 waits"
    while not (last := leased(replay, 7)).done and len(last.leases) == 7:
        assert last.leases[0].task_id == reply.soon[0]
        reply = last
    assert last.soon == ()


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_training_run_draws_what_it_said(adaptive: bool) -> None:
    replay = buffer(replay={"group_size": 2, "batch": 4, "curriculum": adaptive})
    drawn = set()
    for _ in range(8):
        reply = leased(replay, 1)
        told = set(reply.soon)
        assert 2 <= len(told) <= 9
        drawn |= told
        assert {lease.task_id for lease in leased(replay, 1).leases} <= told
    assert len(drawn) > 8, "it moves on"


def test_what_is_set_aside_is_not_told() -> None:
    replay = buffer(phase="eval", eval={"runs": 1})
    replay.state.set_aside["t2"] = "no image"
    assert "t2" not in leased(replay, 1).soon
