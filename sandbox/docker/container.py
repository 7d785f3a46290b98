"""One container with a guest in it: its attached connection and its end."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from aiodocker import DockerError
from aiodocker.containers import DockerContainer
from aiodocker.stream import Stream
from msgspec.structs import replace

from protocol.errors import SandboxError
from sandbox.base import Command, ExecResult, Sandbox, SandboxSpec, Snapshot
from sandbox.docker.covering import CannotCoverError, seal
from sandbox.docker.daemon import DockerHost, Failures
from sandbox.docker.layers import clear_layer
from sandbox.guest.client import GuestClient
from sandbox.guest.sandbox import twin_spec
from sandbox.guest.users import UserSandbox

START_DEADLINE_S = 120.0
REMOVE_DEADLINE_S = 180.0
REMOVE_POLL_S = 0.02
SLOW_REMOVAL_S = 3.0


class Maker(Protocol):
    """What a container needs of the backend that made it."""

    async def forget(self, sandbox: DockerSandbox) -> None:
        """Its end: see that the container is gone."""
        ...

    async def create(self, spec: SandboxSpec) -> DockerSandbox:
        """Another sandbox."""
        ...

    async def take_snapshot(self, sandbox: DockerSandbox) -> Snapshot:
        """Commit its file system."""
        ...


class DockerSandbox(UserSandbox):
    """One container with a guest as its pid 1."""

    def __init__(self, spec: SandboxSpec, host: DockerHost, container: DockerContainer, backend: Maker) -> None:
        super().__init__(spec, GuestClient(self._send, f"container {container.id[:12]} of {spec.lease}"))
        self.container = container
        self.host = host
        self._backend = backend
        self._stream: Stream | None = None
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self.covered = False  # whether it has a disk of its own size
        self.image = ""  # as the backend asked for it
        self.notice = ""  # what the next reply should say besides

    async def start(self) -> None:
        """Attach, then start: attached later, the guest's hello would be lost."""
        self._stream = self.container.attach(stdin=True, stdout=True, stderr=True)
        await self._stream.__aenter__()
        self._tasks = [
            asyncio.create_task(self._read(self._stream), name="container-reader"),
            asyncio.create_task(self._write(self._stream), name="container-writer"),
        ]
        await self.container.start()
        await self.client.hello(START_DEADLINE_S)

    async def run(self, command: Command) -> ExecResult:
        """See `Sandbox.run`. A command that the disk watch killed is told so at the end of its output."""
        result = await super().run(command)
        if not self.notice:
            return result
        notice, self.notice = self.notice.encode(), ""
        return replace(result, tail=result.tail + notice, total_bytes=result.total_bytes + len(notice))

    async def seal(self, paths: list[str]) -> None:
        """See `Sandbox.seal`: where the container has a disk of its own."""
        if not self.covered:
            return
        try:
            await seal(self.container, [self._absolute(path) for path in paths])
        except (*Failures, CannotCoverError) as error:
            raise SandboxError(f"cannot seal {self.spec.lease}: {error}", kind="seal") from error

    async def image_id(self) -> str:
        """See `Sandbox.image_id`: the digest that the daemon started it from."""
        try:
            return str((await self.container.show())["Image"])
        except (*Failures, KeyError) as error:
            raise SandboxError(f"{self.host.url} does not name the image of {self.spec.lease}: {error}") from error

    async def twin(self) -> Sandbox:
        """See `Sandbox.twin`."""
        return await self._backend.create(twin_spec(self.spec))

    async def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""
        return await self._backend.take_snapshot(self)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if self._closed:
            return
        self._closed = True
        self.client.lost("closed", kind="closed")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._stream is not None:
            await self._stream.close()
        await self._backend.forget(self)

    def _send(self, data: bytes) -> None:
        self._outbox.put_nowait(data)

    async def _read(self, stream: Stream) -> None:
        """Waits for output of the container; ended by the container's end or by `close`."""
        said = bytearray()
        try:
            while (message := await stream.read_out()) is not None:
                if message.stream == 1:
                    self.client.feed(message.data)
                else:
                    said = (said + message.data)[-2000:]
        except Failures as error:
            self.client.lost(f"its connection broke: {error}")
        self.client.lost(f"its container ended; it said: {said.decode(errors='replace') or 'nothing'}")

    async def _write(self, stream: Stream) -> None:
        """Waits for frames to send; ended by `close` or a broken connection."""
        try:
            while True:
                await stream.write_in(await self._outbox.get())
        except (*Failures, RuntimeError, AssertionError) as error:
            self.client.lost(f"its connection broke: {error}")


async def remove_container(container: DockerContainer) -> None:
    """Kill and remove, and wait until it is gone: the daemon may be removing it already, which it answers with 409.

    What a daemon cannot remove, or not in a moment (a tree deeper than it can walk), is taken out of its way once.
    """
    cleared = False
    began = time.monotonic()
    try:
        async with asyncio.timeout(REMOVE_DEADLINE_S):
            while True:
                try:
                    await container.delete(force=True, v=True)
                except DockerError as error:
                    if error.status == 404:
                        return
                    if error.status != 409 and cleared:
                        raise
                    slow = time.monotonic() - began > SLOW_REMOVAL_S
                    if not cleared and (error.status != 409 or slow):
                        cleared = True
                        await clear_layer(container)
                    await asyncio.sleep(REMOVE_POLL_S)
    except Failures as error:
        raise SandboxError(f"cannot remove container {container.id[:12]}: {error!r}", kind="remove") from error
