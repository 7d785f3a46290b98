"""A process that cannot be reached is asked again, for it may live; one that died has died."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from cluster.placement import PlacementError
from cluster.supervision import part as parts
from cluster.supervision.part import Part


class Method:
    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.num_calls = 0

    async def remote(self):
        self.num_calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Handle:
    def __init__(self, run, join=None):
        self.run, self.join = run, join or Method()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(parts, "_ASK_AGAIN_S", 0.01)


def unavailable():
    return ActorUnavailableError("connection lost", None)


def running(handle):
    part = Part("generator-0", "generator", lambda title: handle, None)
    part.run()
    return part


async def test_an_unreachable_process_is_waited_for_without_beginning_its_work_again():
    handle = Handle(Method(unavailable()), Method(unavailable(), unavailable(), None))
    part = running(handle)
    await asyncio.wait_for(part.ending, 30)
    assert not part.failed
    assert (handle.run.num_calls, handle.join.num_calls) == (1, 3)


async def test_a_process_that_died_meanwhile_has_failed():
    part = running(Handle(Method(unavailable()), Method(ActorDiedError())))
    with pytest.raises(ActorDiedError):
        await asyncio.wait_for(part.ending, 30)
    assert part.failed


async def test_one_whose_host_is_gone_is_given_up_while_nobody_says_that_it_died():
    never = asyncio.Event()

    class Silent:
        def remote(self):
            return never.wait()

    part = running(Handle(Silent()))
    await asyncio.sleep(0)
    assert not part.ending.done()
    part.give_up(PlacementError("its host is gone", kind="host_gone"))
    with pytest.raises(PlacementError, match="gone"):
        await asyncio.wait_for(part.ending, 30)
    assert part.failed
