"""What becomes of a run whose learner ends: ranks that were lost are started again while everything else works on."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from cluster.supervision.part import LearnerLost, LifeLost, Part, PartFailed
from cluster.supervisor import Supervisor
from protocol.config import Settings
from protocol.errors import LearnerError


class Crew:
    """Two ranks and a generator. Ranks that start again fail as often as they are told to."""

    def __init__(self, *errors, failing_starts=0):
        self.learners = [Part(f"learner-{i}", "learner", lambda title: None, None) for i in range(2)]
        self.generators, self.actors, self.num_starts = (
            [Part("generator-0", "generator", lambda title: None, None)],
            [],
            0,
        )
        self._failing_starts = failing_starts
        self.generators[0].ending = asyncio.get_running_loop().create_future()
        self.end(*errors)

    @property
    def parts(self):
        return [*self.learners, *self.generators]

    def end(self, *errors):
        for part, error in zip(self.learners, errors, strict=True):
            part.ending = asyncio.get_running_loop().create_future()
            if error is not None:
                part.ending.set_exception(error)

    def failure(self, part, error, then=""):
        is_lost = isinstance(error, ActorDiedError) or getattr(error, "kind", "") == "rank_lost"
        return (LearnerLost if is_lost else PartFailed)(f"{part.name} failed: {error}", kind="learner")

    async def restart_learners(self):
        self.num_starts += 1
        if self.num_starts <= self._failing_starts:
            raise LearnerLost("learner-1 failed: it died while it started")
        self.end(None, None)


def supervising(crew, tmp_path, gone=(), **settings):
    notes = []
    lost_host = LearnerError("its host is gone", kind="host_gone")
    cluster = SimpleNamespace(
        gone=lambda: dict.fromkeys(gone, lost_host),
        may_live=lambda name, error: False,
        dead_ray=lambda: "",
        files=SimpleNamespace(directory=tmp_path),
    )
    supervisor = Supervisor(Settings(**settings), cluster, [], SimpleNamespace(note=notes.append), [], None)
    supervisor.crew = crew
    return supervisor, notes


async def mend_until(supervisor, condition):
    for _ in range(1000):
        await supervisor._mend()
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


SEEN = LearnerError("rank 0, waiting for a batch: rank 1 is gone", kind="rank_lost")


async def test_ranks_start_again_from_the_checkpoint_and_nothing_else_does(tmp_path):
    (tmp_path / "checkpoints" / "step-4").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-4" / "checkpoint.json").touch()
    crew = Crew(SEEN, ActorDiedError())
    generating = crew.generators[0].ending
    supervisor, notes = supervising(crew, tmp_path)
    await mend_until(supervisor, lambda: not supervisor._restarting)
    assert crew.num_starts == 1
    assert crew.generators[0].ending is generating
    assert "learner-0 failed" in notes[0] and "rank 1 is gone" in notes[0]
    assert notes[0].endswith("the ranks start again from step 4, the others work on")
    assert notes[1:] == ["the learner is at work again"]


async def test_ranks_that_die_while_they_start_are_started_again(tmp_path):
    crew = Crew(SEEN, ActorDiedError(), failing_starts=2)
    supervisor, notes = supervising(crew, tmp_path)
    await mend_until(supervisor, lambda: not supervisor._restarting)
    assert crew.num_starts == 3
    assert sum("it died while it started" in note for note in notes) == 2


async def test_past_the_budget_the_run_ends_with_that_reason(tmp_path):
    crew = Crew(SEEN, ActorDiedError(), failing_starts=100)
    supervisor, _ = supervising(crew, tmp_path, restarts_per_hour=3)
    with pytest.raises(PartFailed, match=r"restarts_per_hour \(3\).*it died while it started") as failure:
        await mend_until(supervisor, lambda: False)
    assert not isinstance(failure.value, LearnerLost)  # which would begin another life
    assert crew.num_starts == 3


async def test_a_learner_that_computed_something_wrong_is_not_started_again(tmp_path):
    crew = Crew(LearnerError("log-probs differ", kind="parity"), SEEN)
    supervisor, _ = supervising(crew, tmp_path)
    with pytest.raises(PartFailed, match="log-probs differ"):
        await mend_until(supervisor, lambda: False)
    assert crew.num_starts == 0


async def test_where_a_host_is_gone_the_run_begins_another_life(tmp_path):
    crew = Crew(None, SEEN)
    supervisor, _ = supervising(crew, tmp_path, gone=["learner-0"])
    with pytest.raises(PartFailed):
        await mend_until(supervisor, lambda: False)
    assert crew.num_starts == 0


async def test_a_step_that_is_taken_again_takes_the_place_of_the_first(tmp_path):
    crew = Crew(None, None)
    records = [
        [{"step": 1.0, "loss": 1.0}, {"step": 2.0, "loss": 2.0}, {"step": 3.0, "loss": 3.0}],
        [{"step": 2.0, "loss": 5.0}],
    ]

    async def pop():
        return records.pop(0)

    crew.learners[0].handle = SimpleNamespace(pop_records=SimpleNamespace(remote=pop))
    supervisor, _ = supervising(crew, tmp_path)
    supervisor.progress = SimpleNamespace(step=lambda record: None, warn=lambda line: None)
    await supervisor._collect_steps()
    await supervisor._collect_steps()
    assert supervisor.steps == [{"step": 1.0, "loss": 1.0}, {"step": 2.0, "loss": 5.0}]


async def test_without_ray_nothing_is_started_again_and_the_life_ends(tmp_path):
    crew = Crew(ActorDiedError(), ActorDiedError())
    supervisor, notes = supervising(crew, tmp_path)
    supervisor.cluster.dead_ray = lambda: "raylet"
    with pytest.raises(LifeLost, match="Ray's raylet died"):
        await supervisor._mend()
    assert not notes and not crew.num_starts
