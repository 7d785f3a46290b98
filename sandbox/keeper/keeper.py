"""The process that holds a host's sandboxes for a run.

Sandbox actors ask it for sandboxes and then talk to their guests directly, over a connection that the keeper passes on:
it is not in the way of commands. When an actor dies, those of its sandboxes that are `kept` wait `ttl_s` for whoever
comes back under its name, and `COMING_S` for him to take them up, as they were; the others end. The keeper ends with
the last that needs it, and when it dies itself, all of its sandboxes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from protocol.errors import SandboxError
from sandbox.base import SandboxSpec, Snapshot
from sandbox.guest.client import GuestClient
from sandbox.keeper import requests
from sandbox.keeper.requests import LEAVE, PING, REPLACED, Answered, Asked, HeldContainer
from sandbox.namespace.backend import NamespaceBackend

if TYPE_CHECKING:
    from sandbox.keeper.containers import HeldContainers

log = logging.getLogger(__name__)

BACKLOG = 4096  # an actor may ask for all of its sandboxes at once
REQUEST_DEADLINE_S = 30.0
LOOK_S = 0.5
COMING_S = 600.0  # for an actor that is back to come to what was left: the buffer or the generators may be away as well
IDLE_S = 30.0  # an actor that is being started again comes back within this time


class Holdable(Protocol):
    """What the keeper needs of a sandbox that it holds."""

    client: GuestClient

    async def pass_on(self, connection: socket.socket) -> None:
        """Let whoever is at the other end of `connection` work there from now on."""
        ...

    async def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""
        ...

    async def close(self) -> None:
        """See `Sandbox.close`."""
        ...


class _Actor(NamedTuple):
    pass_word: str
    connection: socket.socket


class _Held:
    """A sandbox, or one that is being started."""

    def __init__(self, actor: str, spec: SandboxSpec, container: HeldContainer | None = None) -> None:
        self.actor, self.spec, self.container = actor, spec, container
        self.sandbox: Holdable | None = None
        self.until: float | None = None  # nobody works in it: when it ends
        self.unwanted = False


class Keeper:
    """Serves the socket file `path` until nobody needs it any more."""

    def __init__(self, backend: NamespaceBackend, path: Path) -> None:
        self._backend = backend
        self._path = path
        self._containers: HeldContainers | None = None  # from the first one on: Docker is not everywhere
        self._actors: dict[str, _Actor] = {}
        self._held: dict[str, _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._farewells: list[socket.socket] = []  # of the last that left: closed by the end of this process
        self._idle_since = asyncio.get_running_loop().time()
        self._over = asyncio.Event()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.setblocking(False)
        self._door.bind(str(path))
        self._door.listen(BACKLOG)

    def stop(self) -> None:
        """End, with every sandbox."""
        self._over.set()

    async def run(self) -> None:
        """Waits for requests (unblocked by any actor) and looks twice a second for sandboxes that nobody came back for;
        ends when no actor attends and nothing is held, or by `stop`."""
        accepting = asyncio.create_task(self._accept(), name="keeper: requests")
        try:
            while not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._over.wait()
                self._look()
        finally:
            accepting.cancel()
            self._door.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(accepting, *self._tasks, return_exceptions=True)
            await self._backend.close()
            if self._containers is not None:
                await self._containers.close()

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for name, held in list(self._held.items()):
            if held.until is not None and held.until <= now:
                log.warning("nobody came back for the sandbox of %s: it ends", held.spec.lease)
                self._end(name)
        if self._actors or self._held:
            self._idle_since = now
        elif now - self._idle_since > IDLE_S:
            self._over.set()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._door)
            connection.setblocking(False)
            self._spawn(self._serve(connection))

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        """One connection: the boundary at which every error becomes an answer, or the end of the connection."""
        with connection:
            try:
                async with asyncio.timeout(REQUEST_DEADLINE_S):
                    asked = await requests.receive_asked(connection)
                try:
                    await requests.send(connection, await self._answer(asked, connection))
                except SandboxError as error:
                    await requests.send(connection, requests.Failed(kind=error.kind, text=str(error)))
                    return
                await self._go_on(asked, connection)
            except (OSError, SandboxError, TimeoutError) as error:  # whoever asked is gone
                log.info("a request was not served: %s", error)

    async def _answer(self, asked: Asked, connection: socket.socket) -> Answered:
        match asked:
            case requests.Attend(actor=actor):
                return self._attend(actor, connection)
            case requests.Create():
                return await self._create(asked)
            case requests.Hold():
                return await self._hold(asked)
            case requests.Note(name=name, held=container):
                if name in self._held:
                    self._held[name].container = container
            case requests.Adopt():
                return self._adopt(asked)
            case requests.Close(name=name):
                await self._close(name)
            case requests.TakeSnapshot(name=name):
                return requests.Taken(snapshot=await self._sandbox(name).snapshot())
            case requests.DeleteSnapshot(snapshot=snapshot):
                await self._backend.delete_snapshot(snapshot)
            case requests.Probe():
                return requests.Probed(capabilities=await self._backend.probe())
        return requests.Done()

    async def _go_on(self, asked: Asked, connection: socket.socket) -> None:
        """What a connection is used for once its request is answered."""
        match asked:
            case requests.Attend(actor=actor):
                await self._hear(actor, connection)
            case requests.Create(name=name) | requests.Hold(name=name):
                await self._pass_on(name, connection)
            case requests.Adopt(lease=lease):
                if (kept := self._kept_of(lease)) is not None:
                    await self._pass_on(kept, connection)

    # --- who works in the sandboxes -------------------------------------------------------------------------------

    def _attend(self, actor: str, connection: socket.socket) -> Answered:
        if (former := self._actors.get(actor)) is not None:
            with contextlib.suppress(OSError):
                former.connection.send(REPLACED)
                former.connection.shutdown(socket.SHUT_RDWR)
        self._orphan(actor, COMING_S)
        self._actors[actor] = _Actor(secrets.token_hex(8), connection)
        return requests.Attending(pass_word=self._actors[actor].pass_word)

    async def _hear(self, actor: str, connection: socket.socket) -> None:
        """Until the actor leaves or dies; its end of the connection unblocks it."""
        loop = asyncio.get_running_loop()
        said = b""
        with contextlib.suppress(OSError):
            while (said := await loop.sock_recv(connection, 1)) == PING:
                await loop.sock_sendall(connection, PING)
        if self._actors.get(actor, None) is None or self._actors[actor].connection is not connection:
            return  # another has its name
        del self._actors[actor]
        if said == LEAVE:
            for name in [name for name, held in self._held.items() if held.actor == actor]:
                self._end(name)
            if not self._actors:
                self._farewells.append(connection.dup())
                self._over.set()
        else:
            log.warning("%s is gone; its episodes' sandboxes wait for it", actor)
            self._orphan(actor)

    def _orphan(self, actor: str, least_s: float = 0.0) -> None:
        now = asyncio.get_running_loop().time()
        for name, held in list(self._held.items()):
            if held.actor != actor:
                continue
            if held.spec.kept:
                held.until = now + max(held.spec.ttl_s, least_s)
            else:
                self._end(name)

    def _name_of(self, pass_word: str) -> str:
        for name, actor in self._actors.items():
            if secrets.compare_digest(actor.pass_word, pass_word):
                return name
        raise SandboxError("another process has this one's name and place by now", kind="replaced")

    # --- sandboxes ------------------------------------------------------------------------------------------------

    async def _create(self, asked: requests.Create) -> Answered:
        held = _Held(self._name_of(asked.pass_word), asked.spec)
        return await self._begin(asked.name, held, self._backend.create(asked.spec))

    async def _hold(self, asked: requests.Hold) -> Answered:
        from sandbox.keeper.containers import HeldContainers

        held = _Held(self._name_of(asked.pass_word), asked.spec, asked.held)
        if self._containers is None:
            self._containers = HeldContainers()
        return await self._begin(asked.name, held, self._containers.hold(asked.spec, asked.held))

    async def _begin(self, name: str, held: _Held, starting: Coroutine[Any, Any, Holdable]) -> Answered:
        if name in self._held:
            starting.close()
            raise SandboxError(f"there is a sandbox {name} already", kind="keeper")
        self._held[name] = held
        try:
            held.sandbox = await starting
        except BaseException:
            del self._held[name]
            raise
        if held.unwanted:
            self._end(name)
            raise SandboxError(f"the sandbox of {held.spec.lease} is not wanted any more", kind="closed")
        return requests.Given(name=name, spec=held.spec, held=held.container)

    def _adopt(self, asked: requests.Adopt) -> Answered:
        actor = self._name_of(asked.pass_word)
        name = self._kept_of(asked.lease)
        if name is None:
            return requests.Done()
        held = self._held[name]
        held.actor, held.until = actor, None
        return requests.Given(name=name, spec=held.spec, held=held.container)

    def _kept_of(self, lease: str) -> str | None:
        for name, held in self._held.items():
            alive = held.sandbox is not None and held.sandbox.client.alive and not held.unwanted
            if alive and held.spec.kept and held.spec.lease == lease:
                return name
        return None

    async def _pass_on(self, name: str, connection: socket.socket) -> None:
        await self._sandbox(name).pass_on(connection)

    def _sandbox(self, name: str) -> Holdable:
        held = self._held.get(name)
        if held is None or held.sandbox is None or held.unwanted:
            raise SandboxError(f"there is no sandbox {name}", kind="closed")
        return held.sandbox

    def _end(self, name: str) -> None:
        self._held[name].unwanted = True
        self._held[name].until = None
        self._spawn(self._close_quietly(name))

    async def _close_quietly(self, name: str) -> None:
        try:
            await self._close(name)
        except SandboxError as error:
            log.warning("%s", error)

    async def _close(self, name: str) -> None:
        held = self._held.get(name)
        if held is None:
            return
        held.unwanted = True
        if held.sandbox is not None:  # else it is ended once it has started
            try:
                await held.sandbox.close()
            finally:
                self._held.pop(name, None)
