"""A container without a guest: plain `docker exec`. Slow, and the last resort where the guest cannot be built.

Every command carries a mark in its environment, by which what it started is found and killed at its deadline; what
clears its environment is found by `kill_all` alone.
"""

from __future__ import annotations

import asyncio
import io
import posixpath
import secrets
import tarfile
import time

from aiodocker import DockerError
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from protocol.errors import SandboxError
from sandbox.base import Command, ExecResult
from sandbox.docker.container import START_DEADLINE_S, DockerSandbox
from sandbox.docker.daemon import Failures
from sandbox.guest.tunnel import Accept
from sandbox.listings import Listing
from sandbox.patches import Change

MARK = "LONGHAUL_COMMAND"
POLL_S = 0.1  # of whether a command has ended: what it left in the background may hold its output open
GRACE_S = 5.0
KILL_MARKED = """
for p in /proc/[0-9]*; do
    grep -qs "$0" "$p/environ" && [ "${p#/proc/}" != "$$" ] && kill -9 "${p#/proc/}"
done
true
"""


class Output:
    """Head and tail of a stream of bytes."""

    def __init__(self, max_output: int) -> None:
        self._half = max(1, max_output // 2)
        self.head, self.tail, self.total = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        """Take what came."""
        self.total += len(data)
        room = self._half - len(self.head)
        self.head += data[:room]
        self.tail += data[room:] if room < len(data) else b""
        if len(self.tail) > 2 * self._half + (1 << 16):
            del self.tail[: -self._half]

    def result(self, exit_code: int, timed_out: bool, started: float) -> ExecResult:
        """What the command did."""
        return ExecResult(
            exit_code=exit_code,
            head=bytes(self.head),
            tail=bytes(self.tail[-self._half :]),
            total_bytes=self.total,
            timed_out=timed_out,
            duration_s=time.monotonic() - started,
        )


class PlainDockerSandbox(DockerSandbox):
    """One container whose commands the daemon starts."""

    async def start(self) -> None:
        """Attach and start; there is nobody to say hello."""
        self._stream = self.container.attach(stdin=True, stdout=True, stderr=True)
        await self._stream.__aenter__()
        self._tasks = [asyncio.create_task(self._read(self._stream), name="container-reader")]
        async with asyncio.timeout(START_DEADLINE_S):
            await self.container.start()

    async def hand_over(self) -> None:
        """See `Sandbox.hand_over`."""
        if self.spec.user_paths is not None:
            raise SandboxError("sandbox.user: a user without root needs the command server", kind="user")

    async def run(self, command: Command) -> ExecResult:
        """See `Sandbox.run`. A command killed by signal n ends with 128 + n, as the daemon says."""
        self._check_open()
        mark, started, output = secrets.token_hex(8), time.monotonic(), Output(command.max_output)
        try:
            async with asyncio.timeout(command.timeout):
                marked, place = {**(command.env or {}), MARK: mark}, self._absolute(command.cwd)
                running = await self.container.exec(command.argv, environment=marked, workdir=place)
                async with running.start() as stream:
                    exit_code = await _follow(running, stream, output)
            return output.result(exit_code, False, started)
        except TimeoutError:
            await self._kill(mark)
            return output.result(-9, True, started)
        except asyncio.CancelledError:
            await self._kill(mark)
            raise
        except DockerError as error:
            if error.status == 400:  # the daemon's way of saying that there is no such program
                output.add(f"cannot run: {error.message}\n".encode())
                return output.result(127, False, started)
            raise SandboxError(f"container of {self.spec.lease}: {error}", kind="died") from error

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """See `Sandbox.write`."""
        self._check_open()
        entry = tarfile.TarInfo(self._absolute(path).lstrip("/"))
        entry.size, entry.mode, entry.mtime = len(data), mode, int(time.time())
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(entry, io.BytesIO(data))
        try:
            await self.container.put_archive("/", buffer.getvalue())  # type: ignore[no-untyped-call]
        except Failures as error:
            raise SandboxError(f"container of {self.spec.lease}: cannot write {path!r}: {error}", kind="io") from error

    async def read(self, path: str, max_bytes: int = 1 << 24) -> bytes:
        """See `Sandbox.read`."""
        self._check_open()
        place = self._absolute(path)
        try:
            tar = await self.container.get_archive(posixpath.realpath(place))
        except DockerError as error:
            kind = "missing" if error.status == 404 else "io"
            raise SandboxError(f"container of {self.spec.lease}: {path!r}: {error}", kind=kind) from error
        entry = tar.next()
        if entry is None or not entry.isreg():
            raise SandboxError(f"container of {self.spec.lease}: {path!r} is not a file", kind="not_a_file")
        if entry.size > max_bytes:
            raise SandboxError(f"container of {self.spec.lease}: {path!r} has {entry.size} bytes", kind="too_large")
        file = tar.extractfile(entry)
        assert file is not None
        return file.read()

    async def listen(self, accept: Accept) -> int:
        """See `Sandbox.listen`; there is nobody inside to listen."""
        raise SandboxError("a sandbox without its command server carries no connections", kind="unsupported")

    async def kill_all(self) -> None:
        """See `Sandbox.kill_all`."""
        self._check_open()
        await self._run_quietly(["sh", "-c", "kill -9 -1"])

    async def list_tree(self) -> Listing:
        """Not without a guest: whatever else could list the tree is the agent's."""
        raise SandboxError(f"container of {self.spec.lease}: a change is told by the guest alone", kind="unsupported")

    async def fetch(self, path: str, max_bytes: int) -> Change:
        """See `list_tree`."""
        raise SandboxError(f"container of {self.spec.lease}: a change is told by the guest alone", kind="unsupported")

    async def place(self, change: Change) -> None:
        """See `list_tree`."""
        raise SandboxError(f"container of {self.spec.lease}: a change is placed by the guest alone", kind="unsupported")

    def _send(self, data: bytes) -> None:
        """There is no guest to talk to."""

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxError(f"container of {self.spec.lease}: closed", kind="closed")

    async def _kill(self, mark: str) -> None:
        await self._run_quietly(["sh", "-c", KILL_MARKED, f"{MARK}={mark}"])

    async def _run_quietly(self, argv: list[str]) -> None:
        try:
            async with asyncio.timeout(GRACE_S):
                command = await self.container.exec(argv)
                async with command.start() as stream:
                    await _follow(command, stream, Output(2))
        except Failures as error:
            raise SandboxError(f"container of {self.spec.lease}: cannot kill: {error!r}", kind="died") from error


async def _follow(command: Exec, stream: Stream, output: Output) -> int:
    """Collect output until the command has ended; its exit code."""
    reading = asyncio.ensure_future(_collect(stream, output))
    try:
        while True:
            await asyncio.wait([reading], timeout=POLL_S)
            state = await command.inspect()
            if not state["Running"] and state["ExitCode"] is not None:
                await asyncio.wait([reading], timeout=POLL_S)  # what is still on its way
                return int(state["ExitCode"])
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def _collect(stream: Stream, output: Output) -> None:
    while (message := await stream.read_out()) is not None:
        output.add(message.data)
