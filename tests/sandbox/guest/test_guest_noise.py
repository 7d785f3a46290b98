"""The command server under noise: whatever bytes come, it answers, or ends by itself; no signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import stat
from pathlib import Path

import pytest

from benchmarks.fuzz.mutations import mutated_bytes
from sandbox.guest.build import guest_binary
from sandbox.guest.client import GuestClient
from sandbox.patches import Change

ROUNDS = 200
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGKILL)


async def requests_of_ours() -> list[bytes]:
    """One frame of every kind that a client sends."""
    sent: list[bytes] = []
    client = GuestClient(sent.append, "noise")
    change = Change(path="b", kind="file", content=b"text")
    link = Change(path="c", kind="link", content=b"b")
    asked = [
        client.ping(5),
        client.exec(["true", "a"], 5, "/", {"A": "b"}, 1000),
        client.exec(["true"], 5, "/", None, 1000, lasts=True),
        client.rejoin(5),
        client.write("/a", b"text", 0o644),
        client.read("/a", 1000),
        client.list_tree("/"),
        client.fetch("/", "a", 1000),
        client.place("/", change),
        client.place("/", link),
        client.listen(lambda connection, number: asyncio.sleep(0)),
        client.hand_over(1000, ["/a"]),
        client.kill_all(),
    ]
    tasks = [asyncio.create_task(each) for each in asked]
    await asyncio.sleep(0)
    client.touch()
    client.lost("enough")
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(sent) == len(asked) + 1
    return sent


async def end_of(noise: bytes, root: Path) -> int:
    """Exit status of a guest that is sent `noise`: alone with its own processes and files, so that nothing that it may
    be made to do reaches anybody."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--pid", "--mount", "--net", "--fork", f"--root={root}", "/guest", "20", "0", "0"),
            stdin=theirs,
            stdout=theirs,
            stderr=asyncio.subprocess.DEVNULL,
        )
        theirs.close()
        ours.setblocking(False)
        with contextlib.suppress(OSError):  # it ended already
            await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(ours, noise), 60)
            ours.shutdown(socket.SHUT_WR)
        return await asyncio.wait_for(process.wait(), 60)


async def test_no_bytes_crash_the_command_server(tmp_path: Path) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root for a root directory of the guest's own")
    shutil.copy(guest_binary(), tmp_path / "guest")
    (tmp_path / "dev").mkdir()
    try:
        os.mknod(tmp_path / "dev" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("no device files here")
    frames = await requests_of_ours()
    rng = random.Random(11)
    assert await end_of(b"".join(frames[:5]), tmp_path) == 0
    for number in range(ROUNDS):
        stream = b"".join(rng.sample(frames, k=4))
        noise = mutated_bytes(rng, stream) if number % 2 else stream[: rng.randint(9, 60)] + rng.randbytes(40)
        status = await end_of(noise, tmp_path)
        assert status not in {*(-crash for crash in CRASHES), *(128 + crash for crash in CRASHES)}, (number, noise)
