"""Hosts that come and go while a run lasts: who joins gets its share, who is drained or gone gives its own up.

A drain takes as long as the episodes on its host, so each is a task of its own: neither the supervisor's round nor a
host that joins meanwhile waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from cluster.hosts import drains
from cluster.hosts.plan import Placed, Plan
from cluster.run_files import RunFiles
from cluster.supervision.part import Part, PartFailed
from cluster.supervision.waits import deadline, within
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError

_FOLLOW_S = 2.0
_ASK_S = 10.0
_PART_STOP_S = 3.0


class Hosts(Protocol):
    """The hosts of the run; a call may take seconds, and none is made beside another."""

    plan: Plan
    files: RunFiles

    def welcome(self) -> list[Placed]:
        """What hosts get that have joined."""
        ...

    def move(self, name: str) -> str:
        """Another place for a part; the host. Raises `ConfigError`."""
        ...

    def give_back(self, host: str) -> None:
        """Nothing of the run stays there."""
        ...


class Parts(Protocol):
    """The processes of the run."""

    generators: list[Part]
    actors: list[Part]

    @property
    def parts(self) -> list[Part]:
        """All of them."""
        ...

    async def bring_up(self, placed: Placed) -> None:
        """Start one that the plan has got."""
        ...

    async def leave_out(self, generators: list[Part]) -> None:
        """Nobody asks these any more."""
        ...

    def failure(self, part: Part, error: BaseException) -> PartFailed:
        """What is said of it."""
        ...


class HostChanges:
    """Follows the hosts of one run.

    Args:
        note: takes a line for whoever watches the run.
    """

    def __init__(self, settings: Settings, hosts: Hosts, parts: Parts, note: Callable[[str], None]) -> None:
        self._settings, self._hosts, self._parts, self._note = settings, hosts, parts, note
        self._changing = asyncio.Lock()  # the plan
        self._draining: dict[str, asyncio.Task[None]] = {}

    async def follow(self) -> None:
        """One look at who has joined, after a pause, and at who is to be drained."""
        await asyncio.sleep(_FOLLOW_S)
        try:
            async with self._changing:
                newcomers = await asyncio.to_thread(self._hosts.welcome)
        except LonghaulError as error:
            self._note(f"a host that joined cannot be used: {error}")
            newcomers = []
        await asyncio.gather(*map(self._bring_up, newcomers))  # sandboxes need not wait for an engine to load
        for host in drains.asked(self._hosts.files.directory, [host.name for host in self._hosts.plan.hosts]):
            if host not in self._draining:
                self._draining[host] = asyncio.create_task(self._drain_and_say(host), name=f"drain of {host}")

    async def _bring_up(self, placed: Placed) -> None:
        what = f"{placed.name} on {placed.host}"
        try:
            async with deadline(self._settings.start_timeout_s, lambda: what):
                await self._parts.bring_up(placed)
        except LonghaulError as error:
            self._note(f"{what}, which joined, cannot be used: {error}")

    async def move(self, part: Part) -> bool:
        """Whether a part whose host is gone got a place elsewhere; if not, the run goes on without it.

        Raises:
            PartFailed: the run cannot go on without it.
        """
        try:
            async with self._changing:
                host = await asyncio.to_thread(self._hosts.move, part.name)
        except ConfigError as error:
            alike = self._parts.generators if part.role == "generator" else self._parts.actors
            if alike == [part]:
                raise self._parts.failure(part, error) from error
            self._note(f"the run goes on without {part.name}: {error}")
            if part.role == "generator":
                await self._parts.leave_out([part])
            elif part in alike:
                alike.remove(part)
            return False
        self._note(f"{part.name} moves to {host}")
        return True

    def close(self) -> None:
        """The run is over: nothing is drained any more."""
        for task in self._draining.values():
            task.cancel()

    async def _drain_and_say(self, host: str) -> None:
        try:
            await self._drain(host)
        except LonghaulError as error:
            self._note(f"{host} could not be drained: {error}")
        finally:
            del self._draining[host]

    async def _drain(self, host: str) -> None:
        """Episodes there are finished, generations go on elsewhere; then nothing of the run is left on that host."""
        there = [part for part in self._parts.parts if self._hosts.plan.host_of(part.name) == host]
        fixed = [part.name for part in there if part.role in ("learner", "replay")]
        generators = [part for part in there if part.role == "generator"]
        if fixed or len(generators) == len(self._parts.generators):
            kept = fixed or [part.name for part in generators]
            self._note(f"{host} is not drained: the run cannot go on without {', '.join(kept)}")
            return
        self._note(f"{host} is being drained")
        await self._parts.leave_out(generators)
        await within(_PART_STOP_S, *(part.stop() for part in generators))
        actors = [part for part in there if part.role == "actors"]
        for part in actors:
            with contextlib.suppress(Exception):  # one that died meanwhile is drained
                async with asyncio.timeout(_ASK_S):
                    await part.handle.drain.remote()
        if ends := [part.ending for part in actors if part.ending]:
            await asyncio.wait(ends, timeout=self._settings.episode.wall_time_s)
        for part in actors:
            if part in self._parts.actors:
                self._parts.actors.remove(part)
        async with self._changing:
            await asyncio.to_thread(self._hosts.give_back, host)
        self._note(f"{host} is drained")
