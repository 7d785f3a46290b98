"""Hosts that join and leave a run, beside each other."""

import asyncio
from types import SimpleNamespace

import pytest

from cluster.hosts import changes, drains
from cluster.hosts.changes import HostChanges
from cluster.hosts.plan import Placed
from cluster.supervision.part import Part, PartFailed
from protocol.config import Settings
from protocol.errors import ConfigError
from tests.waiting import until


class Handle:
    """A process whose work ends when it is told to stop, or when a test says so."""

    def __init__(self):
        self.ended, self.drained = asyncio.Event(), False
        for name in ("run", "stop", "drain"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    async def _run(self):
        await self.ended.wait()

    async def _stop(self):
        self.ended.set()

    async def _drain(self):
        self.drained = True


class Plan(SimpleNamespace):
    def host_of(self, name):
        return self.where[name]


class Run:
    """Hosts and parts of a run on two hosts."""

    def __init__(self, directory):
        where = {"generator-0": "a", "generator-1": "b", "sandbox-actor-0": "a", "sandbox-actor-1": "b"}
        self.plan = Plan(where=where, hosts=[SimpleNamespace(name="a"), SimpleNamespace(name="b")])
        self.files = SimpleNamespace(directory=directory)
        self.joining, self.given_back, self.brought_up, self.busy = [], [], [], 0
        self.loaded, self.broken = asyncio.Event(), set()
        self.generators = [self._part(f"generator-{i}", "generator") for i in range(2)]
        self.actors = [self._part(f"sandbox-actor-{i}", "actors") for i in range(2)]

    def _part(self, name, role):
        part = Part(name, role, lambda title: Handle(), None)
        part.run()
        return part

    @property
    def parts(self):
        return [*self.generators, *self.actors]

    def _alone(self):
        assert not self.busy, "two changes of the plan at once"
        self.busy += 1

    def welcome(self):
        self._alone()
        self.busy -= 1
        new, self.joining = self.joining, []
        return new

    def move(self, name):
        raise ConfigError("no host has room", kind="hosts")

    def give_back(self, host):
        self._alone()
        self.given_back.append(host)
        self.busy -= 1

    async def bring_up(self, placed):
        if placed.name in self.broken:
            raise PartFailed("it did not start")
        if placed.role == "generator":
            await self.loaded.wait()
        self.brought_up.append(placed.name)

    async def leave_out(self, generators):
        self.generators = [part for part in self.generators if part not in generators]

    def failure(self, part, error):
        return PartFailed(f"{part.name}: {error}")


@pytest.fixture
async def run(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "_FOLLOW_S", 0.0)
    monkeypatch.setattr(changes, "_ASK_S", 0.1)
    return Run(tmp_path)


async def test_a_drain_that_waits_for_episodes_holds_up_no_host_that_joins(run, tmp_path):
    said = []
    following = HostChanges(Settings(), run, run, said.append)
    busy = run.actors[1].handle
    drains.ask(tmp_path, "b")
    await following.follow()
    await until(lambda: busy.drained)
    run.joining = [Placed(name="sandbox-actor-2", role="actors", host="c", size=1)]
    drains.ask(tmp_path, "b")  # once more: nothing is begun twice
    await following.follow()
    assert run.brought_up == ["sandbox-actor-2"]
    assert (run.given_back, [part.name for part in run.generators]) == ([], ["generator-0"])
    busy.ended.set()
    await until(lambda: len(said) == 2)
    assert ([part.name for part in run.actors], run.given_back) == (["sandbox-actor-0"], ["b"])
    assert said == ["b is being drained", "b is drained"]


async def test_what_joins_waits_for_nothing_else_and_what_fails_holds_up_nothing(run):
    said = []
    following = HostChanges(Settings(), run, run, said.append)
    new = [("generator-2", "generator"), ("sandbox-actor-2", "actors"), ("sandbox-actor-3", "actors")]
    run.joining = [Placed(name=name, role=role, host="c", size=1) for name, role in new]
    run.broken = {"sandbox-actor-2"}
    looking = asyncio.create_task(following.follow())
    await until(lambda: run.brought_up == ["sandbox-actor-3"])
    run.loaded.set()
    await looking
    assert run.brought_up == ["sandbox-actor-3", "generator-2"]
    assert said == ["sandbox-actor-2 on c, which joined, cannot be used: it did not start"]


async def test_what_the_run_cannot_do_without_stays(run, tmp_path):
    said = []
    following = HostChanges(Settings(), run, run, said.append)
    run.generators = run.generators[:1]
    drains.ask(tmp_path, "a")
    await following.follow()
    await until(lambda: said)
    assert said == ["a is not drained: the run cannot go on without generator-0"]
    assert len(run.actors) == 2


async def test_a_part_that_gets_no_other_place_is_left_out_unless_it_is_the_last(run):
    said = []
    following = HostChanges(Settings(), run, run, said.append)
    first, second = run.generators
    assert not await following.move(first)
    assert run.generators == [second]
    assert said == ["the run goes on without generator-0: no host has room"]
    with pytest.raises(PartFailed):
        await following.move(second)
