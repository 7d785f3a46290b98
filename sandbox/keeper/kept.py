"""A `Backend` whose sandboxes the host's keeper holds; the keeper is started by whoever needs it first."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from protocol.errors import SandboxError
from sandbox.base import Capabilities, Sandbox, SandboxSpec, Snapshot
from sandbox.guest.process import GuestConnection
from sandbox.guest.sandbox import GuestSandbox, twin_spec
from sandbox.keeper import requests
from sandbox.keeper.requests import LEAVE, PING, REPLACED, Answered, Asked
from sandbox.namespace.backend import allow_open_files, purge_namespaces
from sandbox.owners import Owner, keeper_of, state_root

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[2]
START_DEADLINE_S = 60.0
REQUEST_DEADLINE_S = 600.0  # a start may wait behind hundreds of others; whether the keeper lives is asked apart
HELLO_DEADLINE_S = 30.0
PING_S = 5.0
FAREWELL_S = 10.0
SILENT_S = 30.0  # a keeper that answers no ping for so long is replaced


class KeptSandbox(GuestSandbox):
    """A sandbox of the keeper's, with a conversation of our own."""

    def __init__(self, spec: SandboxSpec, name: str, connection: GuestConnection, backend: KeptBackend) -> None:
        super().__init__(spec, connection.client)
        self.name = name
        self._connection = connection
        self._backend = backend
        self._closed = False

    async def twin(self) -> Sandbox:
        """See `Sandbox.twin`."""
        return await self._backend.create(twin_spec(self.spec))

    async def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""
        return await self._backend.take_snapshot(self.name)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if not self._closed:
            self._closed = True
            self._connection.drop()
            await self._backend.end(self.name)


class KeptBackend:
    """Asks the keeper of `run` on this host; see `Backend`.

    Args:
        actor: name of this process in the run: whoever has it next may adopt what this one leaves.
        keeper_log: file for what the keeper says, should it be started here.
    """

    name = "namespace"

    def __init__(self, run: str, actor: str, keeper_log: Path, max_starts: int = 4) -> None:
        self._run, self._actor, self._log, self._max_starts = run, actor, keeper_log, max_starts
        self._living: set[str] = set()
        self._attending = asyncio.Lock()
        self._pass_word = ""
        self._keeper: Owner | None = None  # that gave the word
        self._life: asyncio.Task[None] | None = None
        self._life_socket: socket.socket | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._replaced = False
        self.of_containers: Callable[[requests.Given, GuestConnection], Awaitable[Sandbox]] | None = None
        allow_open_files()

    async def probe(self) -> Capabilities:
        """See `Backend.probe`."""
        try:
            await self.attend()
        except SandboxError as error:
            return Capabilities(backend=self.name, available=False, isolation="none", reason=str(error))
        reply = await self._ask(requests.Probe())
        assert isinstance(reply, requests.Probed)
        return reply.capabilities

    async def create(self, spec: SandboxSpec) -> KeptSandbox:
        """See `Backend.create`."""
        name = secrets.token_hex(6)
        try:
            taken = await self.take(requests.Create(pass_word=await self.attend(), name=name, spec=spec))
        except BaseException:  # it may be there, or come to be
            task = asyncio.create_task(self._end_quietly(name), name=f"unwanted sandbox {name}")
            self._endings.add(task)
            task.add_done_callback(self._endings.discard)
            raise
        assert taken is not None, "a new sandbox is given or refused"
        return self._sandbox(*taken)

    def expect(self, images: Sequence[str]) -> None:
        """See `Backend.expect`: there are no images here."""

    async def adopt(self, lease: str) -> Sandbox | None:
        """See `Backend.adopt`."""
        taken = await self.take(requests.Adopt(pass_word=await self.attend(), lease=lease))
        if taken is None:
            return None
        if taken[0].held is None:
            return self._sandbox(*taken)
        if self.of_containers is None:
            taken[1].drop()
            raise SandboxError(f"{lease} is in a container, and Docker is not used here", kind="lost")
        return await self.of_containers(*taken)

    async def purge(self, run: str) -> int:
        """See `Backend.purge`."""
        return await asyncio.to_thread(purge_namespaces, run)

    async def take_snapshot(self, name: str) -> Snapshot:
        """Of the sandbox of that name."""
        reply = await self._ask(requests.TakeSnapshot(name=name))
        assert isinstance(reply, requests.Taken)
        return reply.snapshot

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See `Backend.delete_snapshot`."""
        await self._ask(requests.DeleteSnapshot(snapshot=snapshot))

    async def end(self, name: str) -> None:
        """End a sandbox; returns once it is gone."""
        self._living.discard(name)
        if keeper_of(self._run) is not None:  # else it went with the keeper
            await self._ask(requests.Close(name=name))

    async def close(self) -> None:
        """See `Backend.close`. The keeper stays for others, if there are any."""
        if self._endings:
            await asyncio.wait(self._endings)
        await asyncio.gather(*(self._end_quietly(name) for name in list(self._living)))
        if self._life is not None and self._life_socket is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await self._leave(self._life, self._life_socket)
            self._life = None

    async def _leave(self, life: asyncio.Task[None], connection: socket.socket) -> None:
        """Until the keeper has noted it; where nobody else needs it, until it is gone."""
        with connection.dup() as farewell:
            life.cancel()
            await asyncio.wait([life])
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(FAREWELL_S):
                await loop.sock_sendall(farewell, LEAVE)
                while await loop.sock_recv(farewell, 1):
                    pass

    async def _end_quietly(self, name: str) -> None:
        try:
            await self.end(name)
        except SandboxError as error:
            log.warning("sandbox %s: %s", name, error)

    async def tell(self, asked: requests.Note) -> None:
        """Have the keeper note something."""
        await self._ask(asked)

    async def take(
        self, asked: requests.Create | requests.Adopt | requests.Hold
    ) -> tuple[requests.Given, GuestConnection] | None:
        """A sandbox whose guest talks to us from now on; None: the keeper has none for that lease."""
        ours = await self._dial()
        try:
            reply = await self._say(ours, asked)
            if isinstance(reply, requests.Done):
                ours.close()
                return None
            assert isinstance(reply, requests.Given)
            connection = GuestConnection(f"sandbox {reply.name} of {reply.spec.lease}")
            await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
        except BaseException:
            ours.close()
            raise
        try:
            await connection.client.hello(HELLO_DEADLINE_S)
        except BaseException:
            connection.drop()
            raise
        return reply, connection

    def _sandbox(self, given: requests.Given, connection: GuestConnection) -> KeptSandbox:
        self._living.add(given.name)
        return KeptSandbox(given.spec, given.name, connection, self)

    # --- the keeper -----------------------------------------------------------------------------------------------

    async def attend(self) -> str:
        """The word under which this process is given sandboxes."""
        async with self._attending:
            if self._replaced:
                raise SandboxError(f"another process is {self._actor} by now", kind="replaced")
            if self._life is not None:
                if not self._life.done() and keeper_of(self._run) == self._keeper:
                    return self._pass_word
                self._life.cancel()
                await asyncio.wait([self._life])
            connection = await self._dial()
            try:
                reply = await self._say(connection, requests.Attend(actor=self._actor))
            except BaseException:
                connection.close()
                raise
            assert isinstance(reply, requests.Attending)
            self._pass_word, self._life_socket = reply.pass_word, connection
            self._keeper = keeper_of(self._run)
            self._life = asyncio.create_task(self._live(connection), name="sandbox keeper: sign of life")
            return self._pass_word

    async def _live(self, connection: socket.socket) -> None:
        """Ping the keeper. Waits for the clock and for its answer; a keeper that is gone, or killed for its silence,
        ends it, and `close` does."""
        loop = asyncio.get_running_loop()
        with connection:
            try:
                while True:
                    async with asyncio.timeout(SILENT_S):
                        await loop.sock_sendall(connection, PING)
                        said = await loop.sock_recv(connection, 1)
                    if said == PING:
                        said = await self._until_next_ping(connection)
                    if said != PING:
                        self._replaced = said == REPLACED
                        break
            except TimeoutError:
                log.error("the sandbox keeper was silent for %g s: it is replaced, its sandboxes are lost", SILENT_S)
                self._kill_keeper()
            except OSError:
                pass
        log.warning("another process is %s by now" if self._replaced else "%s lost its sandbox keeper", self._actor)

    async def _until_next_ping(self, connection: socket.socket) -> bytes:
        """What the keeper says unasked meanwhile, or `PING`: nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PING_S):
                return await asyncio.get_running_loop().sock_recv(connection, 1)
        return PING

    def _kill_keeper(self) -> None:
        owner = keeper_of(self._run)
        if owner is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner.pid, signal.SIGKILL)

    async def _ask(self, asked: Asked) -> Answered:
        with await self._dial() as connection:
            return await self._say(connection, asked)

    async def _say(self, connection: socket.socket, asked: Asked) -> Answered:
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                await requests.send(connection, asked)
                reply = await requests.receive_answered(connection)
        except TimeoutError as error:
            what = f"{type(asked).__name__} within {REQUEST_DEADLINE_S:g} s"
            raise SandboxError(f"the sandbox keeper did not answer {what}", kind="keeper") from error
        except OSError as error:
            raise SandboxError(f"the sandbox keeper is gone: {error}", kind="keeper") from error
        if isinstance(reply, requests.Failed):
            raise SandboxError(reply.text, kind=reply.kind)
        return reply

    async def _dial(self) -> socket.socket:
        """A connection to the keeper, which is started if there is none."""
        for is_last in (False, True):
            owner = keeper_of(self._run)
            if owner is None:
                owner = await asyncio.to_thread(self._start)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(connection, str(owner.keeper))
                return connection
            except OSError as error:
                connection.close()
                if is_last:
                    raise SandboxError(f"the sandbox keeper cannot be reached: {error}", kind="keeper") from error
            except BaseException:
                connection.close()
                raise
        raise AssertionError("the last attempt returns or raises")

    def _start(self) -> Owner:
        """Blocking: one process of a run at a time starts a keeper, and the others then find it."""
        root = state_root()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        turn = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if (owner := keeper_of(self._run)) is not None:
                return owner
            command = [sys.executable, "-m", "sandbox.keeper", self._run, str(self._log), str(self._max_starts)]
            path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
            environment = os.environ | {"PYTHONPATH": path}
            started = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=environment,
                check=False,
                timeout=START_DEADLINE_S,
            )
            owner = keeper_of(self._run)
            if owner is None:
                said = f"{started.stdout} {started.stderr}".strip()[-1000:]
                raise SandboxError(f"the sandbox keeper did not start: {said} (its log is {self._log})", kind="keeper")
            return owner
        except subprocess.TimeoutExpired as error:
            what = f"did not start within {START_DEADLINE_S:g} s"
            raise SandboxError(f"the sandbox keeper {what} (its log is {self._log})", kind="keeper") from error
        finally:
            os.close(turn)
