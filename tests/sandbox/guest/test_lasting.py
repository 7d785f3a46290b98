"""The one command that lasts, and its connections: both outlive whoever worked in the sandbox, and the next goes on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest

from protocol.errors import SandboxError
from sandbox.guest import tunnel
from sandbox.guest.build import guest_binary
from sandbox.guest.client import GuestClient
from sandbox.guest.process import GuestConnection, GuestProcess
from sandbox.guest.relay import Relay
from tests.waiting import until

ASKS = """
import os, socket, sys, time
port, size = map(int, sys.argv[1:3])
while not os.path.exists(sys.argv[3]):
    time.sleep(0.01)
s = socket.create_connection(("127.0.0.1", port))
s.sendall(b"%020d" % size + b"x" * size)
open(sys.argv[3] + ".asked", "w")
got = b""
while part := s.recv(1 << 16):
    got += part
print(os.getpid(), got.decode())
"""


RELAYS: WeakKeyDictionary[GuestProcess, Relay] = WeakKeyDictionary()


class Answering:
    """Takes connections: reads what is asked, answers so much of the answer, ends it if it is all of it."""

    def __init__(self, answer: bytes, most: int | None = None) -> None:
        self.answer, self.most = answer, most
        self.asked: list[tuple[int, str]] = []  # by number, the digest of what came
        self.tasks: set[asyncio.Task[None]] = set()

    async def accept(self, connection: socket.socket, number: int) -> None:
        task = asyncio.create_task(self._serve(connection, number))
        self.tasks.add(task)

    async def _serve(self, connection: socket.socket, number: int) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readexactly(20)
            body = await reader.readexactly(int(head))
            self.asked.append((number, hashlib.sha256(head + body).hexdigest()))
            writer.write(self.answer[: self.most])
            if self.most is None:
                writer.write_eof()
            await reader.read()
        writer.close()


async def handed(guest: GuestProcess) -> GuestConnection:
    """As in namespaces: the guest itself talks to another."""
    ours, theirs = socket.socketpair()
    connection = GuestConnection("other")
    ours.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
    with theirs:
        await guest.pass_on(theirs)
    await connection.client.hello(60)
    return connection


async def relayed(guest: GuestProcess) -> GuestConnection:
    """As in containers: whoever was there before is cut off."""
    ours, theirs = socket.socketpair()
    relay, connection = Relay(guest.client), GuestConnection("other")
    if guest in RELAYS:
        RELAYS[guest].end()
    RELAYS[guest] = relay
    loop = asyncio.get_running_loop()
    for side, protocol in ((ours, relay), (theirs, connection)):
        side.setblocking(False)
        await loop.create_connection(lambda protocol=protocol: protocol, sock=side)  # type: ignore[misc]
    await connection.client.hello(60)
    return connection


Take = Callable[[GuestProcess], Awaitable[GuestConnection]]
ways = pytest.mark.parametrize("take", [handed, relayed])


@pytest.fixture
async def guest() -> AsyncIterator[GuestProcess]:
    process = await GuestProcess.start([str(guest_binary()), "600", "0", "0"], "guest", 60, {"PATH": "/usr/bin:/bin"})
    yield process
    await process.stop()


def start(client: GuestClient, port: int, size: int, begins: Path) -> asyncio.Task[object]:
    """The agent, which begins once that file is there."""
    argv = ["python3", "-c", ASKS, str(port), str(size), str(begins)]
    return asyncio.create_task(client.exec(argv, 60, "/", None, 1000, lasts=True))


async def leave(connection: GuestConnection, takes: Answering) -> None:
    """Its process ends, and has closed what it took."""
    connection.drop()
    await asyncio.wait(takes.tasks) if takes.tasks else None


async def lose(connection: GuestConnection, waiting: asyncio.Task[object], takes: Answering) -> None:
    """Its process dies."""
    await leave(connection, takes)
    with pytest.raises(SandboxError):
        await waiting


@ways
@pytest.mark.parametrize("size", [5, 3 * tunnel.WINDOW + 7, 10 << 20], ids=["small", "windows", "most"])
@pytest.mark.parametrize("most", [0, 6, 100_000], ids=["nothing", "half", "much"])
async def test_an_answer_goes_on_where_the_first_died(
    guest: GuestProcess, take: Take, size: int, most: int, tmp_path: Path
) -> None:
    answer = b"hello, " + b"y" * 400_000 + b", world"
    one, other = Answering(answer, most), Answering(answer)
    first = await take(guest)
    port = await first.client.listen(one.accept)
    (tmp_path / "begin").touch()
    waiting = start(first.client, port, size, tmp_path / "begin")
    await until(lambda: one.asked)
    await asyncio.sleep(0.05)  # that some of the answer is on its way; the test holds wherever it is
    await lose(first, waiting, one)
    second = await take(guest)
    assert await second.client.listen(other.accept) == port
    ended = await second.client.rejoin(60)
    assert ended is not None and ended.exit_code == 0
    assert ended.total_bytes == len(ended.text.split()[0]) + 1 + len(answer) + 1, "no byte is missing or there twice"
    assert other.asked == one.asked, "the same connection, and the same words from their beginning"
    again = await second.client.rejoin(60)
    assert again == ended, "its result stays, should whoever heard of it die"
    await leave(second, other)


@ways
async def test_who_asks_while_nobody_is_there_is_held_and_answered(
    guest: GuestProcess, take: Take, tmp_path: Path
) -> None:
    one, other = Answering(b"never"), Answering(b"hello")
    first = await take(guest)
    port = await first.client.listen(one.accept)
    waiting = start(first.client, port, 5, tmp_path / "begin")
    await first.client.ping(60)
    await lose(first, waiting, one)
    (tmp_path / "begin").touch()
    await until((tmp_path / "begin.asked").exists)
    second = await take(guest)
    rejoined = asyncio.create_task(second.client.rejoin(60))
    assert await second.client.listen(other.accept) == port
    ended = await rejoined
    assert ended is not None and ended.text.endswith(" hello\n") and not one.asked
    await leave(second, other)


@ways
async def test_what_ended_while_nobody_was_there_is_told(guest: GuestProcess, take: Take, tmp_path: Path) -> None:
    first = await take(guest)
    assert await first.client.rejoin(60) is None, "nothing was started"
    script = f"until [ -e {tmp_path}/end ]; do sleep 0.05; done; echo done; touch {tmp_path}/ended; exit 7"
    waiting = asyncio.create_task(first.client.exec(["sh", "-c", script], 60, "/", None, 100, lasts=True))
    await first.client.ping(60)
    second_try = await first.client.exec(["true"], 60, "/", None, 100, lasts=True)
    assert second_try.exit_code == 126, "there is one a sandbox"
    await lose(first, waiting, Answering(b""))
    (tmp_path / "end").touch()
    await until((tmp_path / "ended").exists)
    second = await take(guest)
    ended = await second.client.rejoin(60)
    assert ended is not None and (ended.exit_code, ended.text) == (7, "done\n")
    second.drop()


@ways
async def test_it_is_killed_when_whoever_rejoined_stops_waiting(guest: GuestProcess, take: Take) -> None:
    first = await take(guest)
    waiting = asyncio.create_task(first.client.exec(["sleep", "600"], 700, "/", None, 100, lasts=True))
    await first.client.ping(60)
    await lose(first, waiting, Answering(b""))
    second = await take(guest)
    rejoined = asyncio.create_task(second.client.rejoin(60))
    await second.client.ping(60)
    rejoined.cancel()
    await asyncio.wait([rejoined])
    ended = await second.client.rejoin(60)
    assert ended is not None and ended.exit_code == -9
    second.drop()


@ways
async def test_a_connection_that_said_too_much_ends_with_its_owner(
    guest: GuestProcess, take: Take, tmp_path: Path
) -> None:
    one, other = Answering(b"early", 5), Answering(b"hello")
    first = await take(guest)
    port = await first.client.listen(one.accept)
    (tmp_path / "begin").touch()
    waiting = start(first.client, port, 20 << 20, tmp_path / "begin")
    await until(lambda: one.asked)
    await lose(first, waiting, one)
    second = await take(guest)
    await second.client.listen(other.accept)
    ended = await second.client.rejoin(60)
    assert ended is not None and not other.asked
    await leave(second, other)
