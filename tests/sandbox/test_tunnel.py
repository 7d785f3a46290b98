"""The way out of a sandbox without network: one port on its own loopback, carried over its channel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import Backend, Sandbox, SandboxSpec
from sandbox.docker.backend import DockerBackend
from sandbox.guest import tunnel
from sandbox.guest.client import HEADER, GuestClient
from tests.sandbox.guest.test_guest import HELLO, frame
from tests.waiting import until

SIZE = 5_120_000  # twenty windows
OPENED = tunnel.HEAD.pack(1, tunnel.OPEN) + tunnel.OPENED.pack(0, 0)

ECHO = f"""
import hashlib, socket, sys, threading
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sent = bytes(range(256)) * ({SIZE} // 256)
def send():
    s.sendall(sent)
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
got = b""
while part := s.recv(1 << 16):
    got += part
print(len(got), hashlib.sha256(got).hexdigest() == hashlib.sha256(sent).hexdigest())
"""


class Echo:
    """Answers each connection with what it says."""

    def __init__(self) -> None:
        self.num_taken = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def accept(self, connection: socket.socket, number: int = 0) -> None:
        self.num_taken += 1
        task = asyncio.create_task(self._serve(connection))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        finally:
            writer.close()


@pytest.fixture
async def sandbox(backend: Backend, run_name: str, source: Path) -> AsyncIterator[Sandbox]:
    async with await backend.create(SandboxSpec(run=run_name, lease="lease", source=source)) as sandbox:
        yield sandbox


async def run(sandbox: Sandbox, script: str, port: int) -> str:
    return (await sandbox.exec(["python3", "-c", script, str(port)], timeout=60)).text


async def test_bytes_go_both_ways_whole_and_in_order(sandbox: Sandbox) -> None:
    echo = Echo()
    port = await sandbox.listen(echo.accept)
    assert await asyncio.gather(*(run(sandbox, ECHO, port) for _ in range(3))) == [f"{SIZE} True\n"] * 3
    assert echo.num_taken == 3
    await until(lambda: not echo.tasks)


async def test_nothing_else_becomes_reachable(real_backend: Backend, run_name: str, source: Path) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    outside = server.sockets[0].getsockname()[1]
    spec = SandboxSpec(run=run_name, lease="lease", source=source)
    async with await real_backend.create(spec) as one, await real_backend.create(spec) as other:
        echo = Echo()
        port = await one.listen(echo.accept)
        reach = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=5)"
        assert "refused" in await run(one, reach, outside)
        assert "refused" in await run(other, reach, port)
        assert (await one.exec("cat /proc/net/dev | grep -v lo: | wc -l", timeout=20)).text == "2\n"  # the two headings
        assert (await run(one, reach, port)) == ""
        await until(lambda: echo.num_taken == 1)  # the command may end before its connection was taken
        await until(lambda: not echo.tasks)
    server.close()


async def test_a_flood_and_an_answer_that_is_not_read_are_bounded(sandbox: Sandbox) -> None:
    taken: list[socket.socket] = []
    is_over = False

    async def keep(connection: socket.socket, number: int) -> None:
        taken.append(connection)  # and read nothing of it
        if is_over:
            connection.close()

    port = await sandbox.listen(keep)
    flood = """
import socket, sys
sockets, sent = [], 0
for _ in range(200):
    s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=2)
    s.settimeout(0.5)
    try:
        while True: sent += s.send(b"x" * 65536)
    except OSError: pass
    sockets.append(s)
    if len(sockets) == 3: break
print(sent < 40 << 20)
"""
    assert await run(sandbox, flood, port) == "True\n"
    await until(lambda: len(taken) == 3)
    many = """
import socket, sys, time
sockets = []
for _ in range(200):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(("127.0.0.1", int(sys.argv[1])))
    sockets.append(s)
time.sleep(0.3)
"""
    await run(sandbox, many, port)
    assert len(taken) <= 3 + 2 * tunnel.MOST_LINKS
    assert (await sandbox.exec("echo alive", timeout=20)).text == "alive\n"
    is_over = True  # some of the many may still be on their way
    for connection in taken:
        connection.close()


async def test_both_ends_learn_that_the_other_is_gone(sandbox: Sandbox) -> None:
    echo = Echo()
    port = await sandbox.listen(echo.accept)
    waits = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.recv(1)"
    waiting = asyncio.create_task(run(sandbox, waits, port))
    await until(lambda: echo.tasks)
    await sandbox.kill_all()
    await waiting
    await until(lambda: not echo.tasks)

    async def hang_up(connection: socket.socket, number: int) -> None:
        connection.close()

    async def refuse(connection: socket.socket, number: int) -> None:
        raise RuntimeError("not today")

    for accept in (hang_up, refuse):
        client: GuestClient = sandbox.client  # type: ignore[attr-defined]
        for each in client._tunnels.values():
            each._accept = accept
        assert await run(sandbox, waits.replace("s.recv(1)", "print(s.recv(1))"), port) in ("b''\n",)


async def test_connections_end_with_their_sandbox(backend: Backend, run_name: str, source: Path) -> None:
    echo = Echo()
    async with await backend.create(SandboxSpec(run=run_name, lease="lease", source=source)) as sandbox:
        port = await sandbox.listen(echo.accept)
        waits = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.recv(1)"
        waiting = asyncio.create_task(run(sandbox, waits, port))
        await until(lambda: echo.tasks)
    with pytest.raises(SandboxError):
        await waiting
    await until(lambda: not echo.tasks)


@pytest.mark.docker
async def test_without_a_command_server_there_is_no_tunnel(run_name: str) -> None:
    backend = DockerBackend(run_name, with_guest=False)
    if not (await backend.probe()).available:
        await backend.close()
        pytest.skip("no Docker")
    async with await backend.create(SandboxSpec(run=run_name, lease="lease")) as sandbox:
        with pytest.raises(SandboxError) as caught:
            await sandbox.listen(Echo().accept)
        assert caught.value.kind == "unsupported"
    await backend.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x01\x00\x00\x00",
        tunnel.HEAD.pack(1, 9),
        tunnel.HEAD.pack(7, 77),
        OPENED,
        tunnel.HEAD.pack(2, tunnel.OPEN),
        tunnel.HEAD.pack(2, tunnel.OPEN) + tunnel.OPENED.pack(1, 2),
        tunnel.HEAD.pack(2, tunnel.OPEN) + tunnel.OPENED.pack(1 << 40, tunnel.WINDOW + 1),
        tunnel.HEAD.pack(1, tunnel.MORE) + b"\x01\x00\x00\x00",
        tunnel.HEAD.pack(1, tunnel.MORE) + b"\x01",
        tunnel.HEAD.pack(1, tunnel.DATA) + b"x" * (tunnel.WINDOW + 1),
    ],
    ids=range(11),
)
async def test_a_guest_that_breaks_the_rules_is_given_up(payload: bytes) -> None:
    sent: list[bytes] = []
    client = GuestClient(sent.append, "test")
    client.feed(HELLO)
    echo = Echo()
    listening = asyncio.create_task(client.listen(echo.accept))
    await until(lambda: sent)
    request = HEADER.unpack_from(sent[0])[1]
    client.feed(frame(request, b"\x10\x27\x00\x00") + frame(request, OPENED))
    assert await listening == 10_000
    await until(lambda: echo.tasks)
    client.feed(frame(request, payload))
    assert not client.alive
    await until(lambda: not echo.tasks)


def test_the_numbers_are_those_of_the_other_side() -> None:
    header = (Path(tunnel.__file__).parent / "guest.h").read_text()
    source = (Path(tunnel.__file__).parent / "tunnel.c").read_text()
    assert f"#define MAX_LINKS {tunnel.MOST_LINKS} " in header
    assert "#define WINDOW (1u << 18)" in source and tunnel.WINDOW == 1 << 18
