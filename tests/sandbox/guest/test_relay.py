"""Another process works in a sandbox through its owner: commands, connections, and who was there before."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator

import pytest

from protocol.errors import SandboxError
from sandbox.guest.build import guest_binary
from sandbox.guest.client import EXEC, HEADER, OWNER, GuestClient
from sandbox.guest.process import GuestConnection, GuestProcess
from sandbox.guest.relay import Relay
from tests.waiting import sleepers, until


@pytest.fixture
async def guest() -> AsyncIterator[GuestProcess]:
    process = await GuestProcess.start([str(guest_binary()), "600", "0", "0"], "guest", 60, {"PATH": "/usr/bin:/bin"})
    yield process
    await process.stop()


async def relayed(guest: GuestProcess) -> tuple[Relay, GuestConnection]:
    """The owner's end, and the other process's."""
    ours, theirs = socket.socketpair()
    relay, connection = Relay(guest.client), GuestConnection("other")
    loop = asyncio.get_running_loop()
    for side, protocol in ((ours, relay), (theirs, connection)):
        side.setblocking(False)
        await loop.create_connection(lambda protocol=protocol: protocol, sock=side)  # type: ignore[misc]
    await connection.client.hello(60)
    return relay, connection


async def run(client: GuestClient, script: str) -> str:
    return (await client.exec(["sh", "-c", script], 60, "/", None, 10_000)).text


async def test_commands_of_both_sides_get_their_own_answers(guest: GuestProcess) -> None:
    _, connection = await relayed(guest)
    sides = [guest.client, connection.client]
    said = await asyncio.gather(*(run(sides[i % 2], f"sleep 0.{i % 3}; echo {i}") for i in range(20)))
    assert said == [f"{i}\n" for i in range(20)]
    await connection.client.ping(60)
    connection.drop()


async def test_a_connection_from_inside_reaches_the_other_process(guest: GuestProcess) -> None:
    _, connection = await relayed(guest)
    heard: list[bytes] = []

    async def accept(inside: socket.socket, number: int) -> None:
        reader, writer = await asyncio.open_connection(sock=inside)
        heard.append(await reader.readline())
        writer.write(b"world\n")
        writer.close()

    port = await connection.client.listen(accept)
    script = f"exec 3<>/dev/tcp/127.0.0.1/{port}; echo hello >&3; cat <&3"
    said = await connection.client.exec(["bash", "-c", script], 60, "/", None, 1000)
    assert (said.text, heard) == ("world\n", [b"hello\n"])
    connection.drop()


async def test_who_comes_after_goes_on_and_what_the_first_waited_for_is_killed(guest: GuestProcess) -> None:
    marker = str(10**6 + secrets.randbelow(10**8))
    relay, first = await relayed(guest)
    waiting = asyncio.create_task(run(first.client, f"sleep {marker}"))
    await until(lambda: sleepers(marker))
    relay.end()
    with pytest.raises(SandboxError):
        await waiting
    _, second = await relayed(guest)
    assert await run(second.client, "echo mine") == "mine\n"
    await until(lambda: not sleepers(marker))
    second.drop()
    assert await run(guest.client, "echo the owner is there") == "the owner is there\n"


async def test_a_command_that_nobody_waits_for_any_more_is_killed_through_the_relay(guest: GuestProcess) -> None:
    marker = str(10**6 + secrets.randbelow(10**8))
    _, connection = await relayed(guest)
    waiting = asyncio.create_task(run(connection.client, f"sleep {marker}"))
    await until(lambda: sleepers(marker))
    waiting.cancel()
    await until(lambda: not sleepers(marker))
    assert await run(connection.client, "echo well") == "well\n"
    connection.drop()


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(HEADER.pack(3, 1, EXEC), id="too short"),
        pytest.param(HEADER.pack(1 << 31, 1, EXEC), id="too long"),
        pytest.param(HEADER.pack(5, 1, OWNER), id="handing it to a third"),
    ],
)
async def test_a_frame_that_no_process_of_ours_sends_cuts_it_off_and_harms_nobody(
    guest: GuestProcess, frame: bytes
) -> None:
    _, connection = await relayed(guest)
    assert connection._transport is not None
    connection._transport.write(frame)
    await until(lambda: not connection.client.alive)
    assert await run(guest.client, "echo well") == "well\n"
