"""A guest behind a socket, and a guest as a child process: one socket pair is its stdin and stdout, a pidfd tells when
it is gone."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Mapping
from typing import Self, cast

from protocol.errors import SandboxError
from sandbox.guest.client import GuestClient

STOP_DEADLINE_S = 10.0
MAX_STDERR = 4000
_WRITTEN_POLL_S = 0.01


class GuestConnection(asyncio.Protocol):
    """A conversation with a guest over a socket."""

    def __init__(self, name: str) -> None:
        self.client = GuestClient(self._send, name)
        self._name = name
        self._transport: asyncio.Transport | None = None

    def drop(self) -> None:
        """End the conversation."""
        self.client.lost("closed", kind="closed")
        if self._transport is not None:
            self._transport.abort()

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self.client.feed(data)
        if not self.client.alive and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.client.lost("its command server is gone" + (f" ({exc})" if exc else ""))


class GuestProcess(GuestConnection):
    """The process, its conversation, and its end. The guest leaves by itself when this side of the socket closes, so
    the owner's death, however sudden, is the sandbox's death."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._gone = asyncio.Event()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    @classmethod
    async def start(
        cls, argv: list[str], name: str, deadline_s: float, env: Mapping[str, str], cwd: str | None = None
    ) -> Self:
        """Start a command that becomes a guest and wait for its hello. Raises `SandboxError` (kind: start)."""
        self = cls(name)
        try:
            await self._spawn(argv, env, cwd, deadline_s)
        except BaseException:
            await self.stop()
            raise
        return self

    @property
    def pid(self) -> int:
        """Process id of the command that was started."""
        assert self._process is not None
        return self._process.pid

    async def stop(self) -> None:
        """End the guest and wait until it is gone. May be called twice."""
        self.drop()
        if self._process is None:
            return
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await self._gone.wait()
        except TimeoutError:
            self._process.kill()
            async with asyncio.timeout(STOP_DEADLINE_S):
                await self._gone.wait()

    async def pass_on(self, connection: socket.socket) -> None:
        """Let whoever is at the other end of `connection` talk to the guest; see `GuestClient.pass_on`."""
        assert self._transport is not None and self._socket is not None
        while self._transport.get_write_buffer_size():  # noqa: ASYNC110  (what was written before goes first)
            await asyncio.sleep(_WRITTEN_POLL_S)
        ours = self._socket
        try:
            await self.client.pass_on(lambda frame: _send_with(ours, frame, connection.fileno()))
        except OSError as error:
            raise SandboxError(f"{self._name}: cannot be passed on: {error}", kind="pass_on") from error

    async def _spawn(self, argv: list[str], env: Mapping[str, str], cwd: str | None, deadline_s: float) -> None:
        ours, theirs = socket.socketpair()
        stderr = os.memfd_create("stderr")
        try:
            # Spawned from the loop's thread, which lives as long as its sandboxes should: bubblewrap dies with it.
            self._process = _popen(argv, theirs.fileno(), stderr, env, cwd)
            theirs.close()
            self._watch()
            ours.setblocking(False)
            self._socket = ours
            await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
            await self.client.hello(deadline_s)
        except OSError as error:
            ours.close()
            raise SandboxError(f"{self._name}: cannot start {argv[0]}: {error}", kind="start") from error
        except SandboxError as error:
            said = os.pread(stderr, MAX_STDERR, 0).decode(errors="replace").strip()
            raise SandboxError(
                f"{self._name} did not start: {error}; it said: {said or 'nothing'}", kind="start"
            ) from None
        finally:
            theirs.close()
            os.close(stderr)

    def _watch(self) -> None:
        assert self._process is not None
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._gone.set()
        self.client.lost(f"ended with status {self._process.returncode}")


def _send_with(connection: socket.socket, frame: bytes, descriptor: int) -> None:
    sent = socket.send_fds(connection, [frame], [descriptor])
    assert sent == len(frame), "a short frame goes out whole or not at all"


def _popen(
    argv: list[str], socket_fd: int, stderr: int, env: Mapping[str, str], cwd: str | None
) -> subprocess.Popen[bytes]:
    """A few milliseconds: no uid change and no function of ours between fork and exec, so it is a vfork."""
    return subprocess.Popen(
        argv, stdin=socket_fd, stdout=socket_fd, stderr=stderr, env=dict(env), cwd=cwd, start_new_session=True
    )
