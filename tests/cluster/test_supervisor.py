"""How long a stop waits for the learner: for its checkpoint, but not against a second signal, nor past its deadline."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from cluster import supervisor
from cluster.supervisor import Supervisor
from protocol.config import Settings
from protocol.errors import DeadlineError

LONG_S = 60.0


class Learner:
    """A part whose work ends `saves_for_s` after it is told to stop."""

    role = "learner"
    failed = False

    def __init__(self, saves_for_s):
        self.saves_for_s = saves_for_s
        self.ending = asyncio.get_running_loop().create_future()

    async def stop(self):
        asyncio.get_running_loop().call_later(self.saves_for_s, self.ending.set_result, None)
        await asyncio.wait({self.ending})


class Notes(list):
    def note(self, text):
        self.append(text)


@pytest.fixture
async def signals():
    return SimpleNamespace(requested=asyncio.Event(), insisted=asyncio.Event())


async def stop_learners(signals, learners, stop_timeout_s=LONG_S):
    """Seconds that it took, and what was said."""
    notes = Notes()
    stopping = Supervisor(Settings(stop_timeout_s=stop_timeout_s), None, [], notes, [], signals)
    stopping.crew.learners = learners
    started = time.monotonic()
    await asyncio.wait_for(stopping._stop_learners(learners), LONG_S / 2)
    return time.monotonic() - started, notes


async def test_it_waits_until_every_rank_has_saved(signals):
    took_s, notes = await stop_learners(signals, [Learner(0.0), Learner(0.3)])
    assert took_s >= 0.3
    assert not notes


async def test_a_second_signal_ends_the_wait(signals):
    signals.insisted.set()
    _, notes = await stop_learners(signals, [Learner(LONG_S)])
    assert "last checkpoint stands" in notes[0]


async def test_the_deadline_ends_the_wait(signals):
    _, notes = await stop_learners(signals, [Learner(LONG_S)], stop_timeout_s=0.1)
    assert "last checkpoint stands" in notes[0]


async def test_without_a_rank_there_is_nothing_to_wait_for(signals, monkeypatch):
    monkeypatch.setattr(supervisor, "_PART_STOP_S", 0.1)
    lost = Learner(0.0)
    lost.failed = True
    _, notes = await stop_learners(signals, [lost, Learner(LONG_S)])
    assert not notes


async def test_a_start_that_takes_too_long_goes_no_further(signals, monkeypatch):
    """What a part says when the run is stopped for that is nobody's."""
    starting = Supervisor(Settings(start_timeout_s=0.1), None, [], Notes(), [], signals)
    ended = []

    async def start():
        try:
            await asyncio.sleep(LONG_S)
        finally:
            ended.append(asyncio.current_task().cancelling() > 0)

    monkeypatch.setattr(starting.crew, "start", start)
    monkeypatch.setattr(starting.crew, "not_ready", lambda: "generator-0 to be ready")
    with pytest.raises(DeadlineError, match=r"waited 0\.1 s for generator-0 to be ready"):
        await starting._start()
    await asyncio.sleep(0)
    assert ended == [True]


class Silent:
    """A part that is asked for its status and never says anything; `asked` counts."""

    role, name, can_answer, status = "actors", "sandbox-actor-0", True, {}
    answered_at = 0.0
    failed, ending, num_restarts = False, None, 0
    asked = 0

    def __init__(self):
        self.handle = SimpleNamespace(status=SimpleNamespace(remote=self._status))

    def _status(self):
        Silent.asked += 1
        return asyncio.Event().wait()


async def test_a_silent_part_does_not_hold_up_the_samples_of_the_others(signals, tmp_path):
    sampled = []
    progress = SimpleNamespace(sample=lambda values, stalled: sampled.append((values, stalled)), note=sampled.append)
    answers = SimpleNamespace(
        status=SimpleNamespace(remote=lambda: asyncio.sleep(0, {"leased": 3.0})),
        report_pressure=SimpleNamespace(remote=lambda source, levels: asyncio.Event().wait()),
    )
    replay = SimpleNamespace(
        role="replay",
        name="replay-buffer",
        can_answer=True,
        status={},
        answered_at=0.0,
        failed=False,
        ending=None,
        num_restarts=0,
        handle=answers,
    )
    cluster = SimpleNamespace(
        fleet=None, files=SimpleNamespace(directory=tmp_path), plan=SimpleNamespace(host_of=lambda name: "here")
    )
    watching = Supervisor(Settings(), cluster, [], progress, [], signals)
    watching.crew.replay, watching.crew.actors = replay, [Silent()]
    started = time.monotonic()
    for _ in range(3):
        await watching._sample(0.2)
    assert time.monotonic() - started < LONG_S / 2
    assert replay.status == {"leased": 3.0}
    assert len(sampled) == 3
    assert Silent.asked == 1  # its question is still open
    assert "sandbox-actor-0 (stalled)" in sampled[-1][1]
    for task in watching._asking.values():
        task.cancel()


async def test_a_checkpoint_that_could_not_be_saved_is_said_once(signals, tmp_path):
    notes = Notes()
    cluster = SimpleNamespace(files=SimpleNamespace(logs=tmp_path))
    supervisor = Supervisor(Settings(), cluster, [], notes, [], signals)
    rank = SimpleNamespace(status={})
    supervisor.crew.learners = [rank]
    for failed in (0.0, 1.0, 1.0, 2.0, 0.0):  # fresh ranks begin to count anew
        rank.status = {"failed_checkpoints": failed}
        supervisor._tell_checkpoints()
    assert [note.partition(" (")[0] for note in notes] == ["a checkpoint could not be saved"] * 2
