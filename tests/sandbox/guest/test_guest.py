"""The command server and its client, without a sandbox: frames, hostile peers, deadlines."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SandboxError
from sandbox.guest.build import guest_binary
from sandbox.guest.client import HEADER, MAX_FRAME, PROTOCOL_VERSION, RESULT, GuestClient
from sandbox.guest.process import GuestProcess
from tests.waiting import until

HELLO = HEADER.pack(13, 0, 0) + struct.pack("<II", PROTOCOL_VERSION, 1)


def frame(request: int, payload: bytes, status: int = 0) -> bytes:
    return HEADER.pack(5 + len(payload), request, status) + payload


def result_frame(request: int, head: bytes, tail: bytes, total: int) -> bytes:
    return frame(request, RESULT.pack(0, 0, len(head), len(tail), total, 5, 0, 0) + head + tail)


@pytest.fixture
async def guest() -> AsyncIterator[GuestProcess]:
    """A real guest, as an ordinary child process."""
    process = await GuestProcess.start([str(guest_binary()), "600", "0", "0"], "guest", 60, {"PATH": "/usr/bin:/bin"})
    yield process
    await process.stop()


async def ask(hostile: bytes) -> SandboxError:
    """What a caller gets when the other side answers with these bytes."""
    client = GuestClient(lambda data: None, "test")
    client.feed(HELLO)
    await client.hello(5)
    waiting = asyncio.create_task(client.exec(["true"], 5, "/", None, 1000))
    await asyncio.sleep(0)
    client.feed(hostile)
    with pytest.raises(SandboxError) as caught:
        await waiting
    return caught.value


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(HEADER.pack(MAX_FRAME + 1, 1, 0), id="too long"),
        pytest.param(HEADER.pack(4, 1, 0), id="too short"),
        pytest.param(frame(2, b""), id="an answer to nothing"),
        pytest.param(frame(0, b"again"), id="a second hello"),
        pytest.param(frame(1, b""), id="a result without a result"),
        pytest.param(result_frame(1, b"abc", b"", 2), id="more output than there was"),
        pytest.param(frame(1, RESULT.pack(0, 0, 1000, 0, 1000, 5, 0, 0)), id="lengths beyond the frame"),
        pytest.param(frame(1, b"", status=1), id="an error without a code"),
    ],
)
async def test_forged_frames_end_the_conversation(hostile: bytes) -> None:
    assert (await ask(hostile)).kind == "protocol"


@given(st.binary(min_size=9, max_size=200))
async def test_no_bytes_do_more_than_end_the_conversation(noise: bytes) -> None:
    client = GuestClient(lambda data: None, "test")
    client.feed(HELLO)
    await client.hello(5)
    waiting = asyncio.create_task(client.exec(["true"], 5, "/", None, 1000))
    await asyncio.sleep(0)
    for at in range(0, len(noise), 7):
        client.feed(noise[at : at + 7])
    client.lost("end of test")
    with pytest.raises(SandboxError):
        await waiting


async def test_answers_come_in_any_order_and_in_any_pieces() -> None:
    client = GuestClient(lambda data: None, "test")
    client.feed(HELLO)
    await client.hello(5)
    calls = [asyncio.create_task(client.exec(["true"], 5, "/", None, 1000)) for _ in range(3)]
    await asyncio.sleep(0)
    stream = b"".join(result_frame(request, b"%d" % request, b"", 1) for request in (3, 1, 2))
    for at in range(len(stream)):
        client.feed(stream[at : at + 1])
    assert [(await call).text for call in calls] == ["1", "2", "3"]


async def test_a_silent_guest_is_given_up() -> None:
    client = GuestClient(lambda data: None, "test")
    with pytest.raises(SandboxError, match="no answer to the guest's hello") as caught:
        await client.hello(0.05)
    assert caught.value.kind == "silent" and not client.alive


async def test_a_guest_of_another_version_is_refused() -> None:
    client = GuestClient(lambda data: None, "test")
    client.feed(HEADER.pack(13, 0, 0) + struct.pack("<II", 99, 1))
    with pytest.raises(SandboxError, match=f"hello of version {PROTOCOL_VERSION}"):
        await client.hello(5)


async def test_what_does_not_start_says_why() -> None:
    for command, said in ((["/no/such/program"], "No such file"), (["sh", "-c", "echo broken >&2; exit 3"], "broken")):
        with pytest.raises(SandboxError, match=said) as caught:
            await GuestProcess.start(command, "guest", 60, {"PATH": "/usr/bin:/bin"})
        assert caught.value.kind == "start"


async def test_frames_that_are_not_the_owners_end_the_guest(guest: GuestProcess) -> None:
    guest._send(struct.pack("<IIB", 3, 1, 1))
    with pytest.raises(SandboxError):
        await guest.client.ping(60)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        struct.pack("<IIII", 1000, 1000, 1 << 30, 0),
        struct.pack("<IIII", 1000, 1000, 1, 0) + struct.pack("<I", 1 << 31),
        struct.pack("<IIII", 1000, 1000, 1, 1 << 20) + struct.pack("<I", 0) + b"\0",
        struct.pack("<IIII", 1000, 1000, 2, 0) + (struct.pack("<I", 1) + b"a\0") * 2,
    ],
)
async def test_malformed_requests_are_answered_not_obeyed(guest: GuestProcess, payload: bytes) -> None:
    for op in (1, 2, 3):
        with pytest.raises(Exception, match=r"Bad message|unknown|not an absolute"):
            await guest.client._call(op, payload, 60, "a malformed request")
    await guest.client.ping(60)


async def test_many_commands_at_once_are_refused_past_a_bound(guest: GuestProcess, tmp_path: Path) -> None:
    script = f"until [ -e {tmp_path}/end ]; do sleep 0.1; done"
    calls = [asyncio.create_task(guest.client.exec(["sh", "-c", script], 200, "/", None, 100)) for _ in range(40)]
    await guest.client.ping(60)  # all of them were asked for before
    (tmp_path / "end").touch()
    codes = [result.exit_code for result in await asyncio.gather(*calls)]
    assert sorted(set(codes)) == [0, 126] and 32 <= codes.count(0) < 40


async def test_a_guest_without_its_owner_ends() -> None:
    """The TTL: the owner hangs, its end of the pipe stays open."""
    process = await GuestProcess.start([str(guest_binary()), "5", "0", "0"], "guest", 60, {"PATH": "/usr/bin:/bin"})
    await process.client.exec(["true"], 60, "/", None, 100)
    for _ in range(30):
        await asyncio.sleep(0.2)
        process.client.touch()
    await process.client.ping(60)
    await until(lambda: not process.client.alive)
    with pytest.raises(SandboxError, match=r"gone|ended"):
        await process.client.ping(60)
    await process.stop()


async def test_the_watchdog_kills_what_takes_too_much_memory_and_nothing_else() -> None:
    alone = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--as-pid-1", "--proc", "/proc", "--die-with-parent"]
    limited = [str(guest_binary()), "600", "0", "64"]
    process = await GuestProcess.start([*alone, *limited], "guest", 60, {"PATH": "/usr/bin:/bin"})
    try:
        modest = await process.client.exec(["sleep", "1"], 60, "/", None, 100)
        assert modest.exit_code == 0
        hog = "python3 -c 'import time; x = bytearray(b\"x\") * (200 << 20); time.sleep(600)'"
        result = await process.client.exec(["sh", "-c", hog], 120, "/", None, 1000)
        assert result.exit_code == -9 and not result.timed_out
        assert (await process.client.exec(["sh", "-c", "sleep 1; echo fine"], 60, "/", None, 100)).text == "fine\n"
    finally:
        await process.stop()


async def test_no_guest_measures_the_memory_of_the_whole_host() -> None:
    with pytest.raises(SandboxError, match="needs a pid namespace"):
        await GuestProcess.start([str(guest_binary()), "20", "0", "64"], "guest", 60, {"PATH": "/usr/bin:/bin"})
