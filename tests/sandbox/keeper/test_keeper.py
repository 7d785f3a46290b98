"""Sandboxes that a keeper holds: what stays when the process that works in them is killed, and what does not."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import SandboxSpec
from sandbox.keeper.kept import KeptBackend
from sandbox.owners import keeper_of
from tests.waiting import sleepers, until

ACTOR = """
import asyncio, sys
from pathlib import Path
from sandbox.base import SandboxSpec
from sandbox.keeper.kept import KeptBackend

async def main():
    run, marker, keeper_log = sys.argv[1:]
    backend = KeptBackend(run, "actor-0", Path(keeper_log))
    kept = await backend.create(SandboxSpec(run=run, lease="kept", kept=True))
    graded = await backend.create(SandboxSpec(run=run, lease="kept"))
    await kept.write("file", b"as it was")
    await kept.exec(f"(setsid sleep {marker} &) ; true", timeout=60)
    await graded.exec(f"(setsid sleep 1{marker} &) ; true", timeout=60)
    await asyncio.sleep(0.1)  # what began in the same tick as a command that is ended counts as its child
    waiting = asyncio.create_task(kept.exec(f"echo ran >> runs; sleep 2{marker}", timeout=600))
    while (await kept.exec("cat runs", timeout=60)).text != "ran\\n":
        pass
    kept._connection._transport.write(b"\\xff\\xff\\x00\\x00half a frame")
    print("ready", flush=True)
    await waiting

asyncio.run(main())
"""


@pytest.fixture
async def next_actor(run_name: str, tmp_path: Path) -> AsyncIterator[KeptBackend]:
    """The process that comes back under the name of the one that was killed."""
    backend = KeptBackend(run_name, "actor-0", tmp_path / "keeper.log")
    if not (capabilities := await backend.probe()).available:
        await backend.close()
        pytest.skip(capabilities.reason)
    yield backend
    await backend.close()
    assert keeper_of(run_name) is None, "the last that leaves takes the keeper along"
    assert await backend.purge(run_name) == 0


async def test_a_killed_actor_leaves_its_sandbox_to_the_next_as_it_was(run_name: str, tmp_path: Path) -> None:
    marker, keeper_log = str(10**6 + secrets.randbelow(10**8)), tmp_path / "keeper.log"
    actor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ACTOR, run_name, marker, str(keeper_log)), stdout=asyncio.subprocess.PIPE
    )
    assert actor.stdout is not None
    async with asyncio.timeout(120):
        assert await actor.stdout.readline() == b"ready\n"
    await until(lambda: len(sleepers(f"2{marker}")) == 1)  # its shell says that it ran before it starts it
    await until(lambda: len(sleepers(f"1{marker}")) == 1)
    os.kill(actor.pid, signal.SIGKILL)
    await actor.wait()
    actor._transport.close()  # type: ignore[attr-defined]

    next_actor = KeptBackend(run_name, "actor-0", keeper_log)
    try:
        sandbox = await next_actor.adopt("kept")
        assert sandbox is not None
        assert await sandbox.read("file") == b"as it was"
        await until(lambda: len(sleepers(marker)) == 1)  # what ran in the background runs on
        await until(lambda: not sleepers(f"2{marker}"))  # whose result nobody waits for any more
        assert (await sandbox.exec("cat runs", timeout=60)).text == "ran\n", "a command is run once"
        await until(lambda: not sleepers(f"1{marker}"))  # a sandbox that was not to be kept
        await sandbox.close()
        await until(lambda: not sleepers(marker))
        assert await next_actor.adopt("kept") is None
    finally:
        await next_actor.close()
    assert keeper_of(run_name) is None
    assert await next_actor.purge(run_name) == 0


async def test_nobody_comes_back(next_actor: KeptBackend, run_name: str, tmp_path: Path) -> None:
    other = KeptBackend(run_name, "actor-1", tmp_path / "keeper.log")
    sandbox = await other.create(SandboxSpec(run=run_name, lease="left", kept=True, ttl_s=5))
    marker = str(10**6 + secrets.randbelow(10**8))
    await sandbox.exec(f"(setsid sleep {marker} &) ; true", timeout=60)
    await until(lambda: sleepers(marker))
    assert other._life is not None and other._life_socket is not None
    other._life.cancel()  # as if it had been killed
    await asyncio.wait([other._life])
    await until(lambda: not sleepers(marker))
    assert await next_actor.adopt("left") is None


async def test_who_is_back_may_take_his_time_to_come_to_what_was_left(next_actor: KeptBackend, run_name: str) -> None:
    await next_actor.create(SandboxSpec(run=run_name, lease="late", kept=True, ttl_s=5))
    successor = KeptBackend(run_name, "actor-0", next_actor._log)
    try:
        await successor.attend()
        await asyncio.sleep(7)  # with nobody there at all it would have ended after five seconds
        taken = await successor.adopt("late")
        assert taken is not None
        assert (await taken.exec("echo well", timeout=60)).text == "well\n"
    finally:
        await successor.close()


async def test_who_was_replaced_is_given_nothing_and_cut_off(next_actor: KeptBackend, run_name: str) -> None:
    sandbox = await next_actor.create(SandboxSpec(run=run_name, lease="one", kept=True))
    successor = KeptBackend(run_name, "actor-0", next_actor._log)
    try:
        taken = await successor.adopt("one")
        assert taken is not None
        assert (await taken.exec("echo mine", timeout=60)).text == "mine\n"
        with pytest.raises(SandboxError):
            await sandbox.exec("echo his", timeout=60)
        with pytest.raises(SandboxError) as refused:
            await next_actor.create(SandboxSpec(run=run_name, lease="two"))
        assert refused.value.kind == "replaced"
    finally:
        await successor.close()


async def test_a_dead_keeper_takes_its_sandboxes_along_and_is_replaced(next_actor: KeptBackend, run_name: str) -> None:
    sandbox = await next_actor.create(SandboxSpec(run=run_name, lease="one", kept=True))
    marker = str(10**6 + secrets.randbelow(10**8))
    await sandbox.exec(f"(setsid sleep {marker} &) ; true", timeout=60)
    await until(lambda: sleepers(marker))
    keeper = keeper_of(run_name)
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGKILL)
    await until(lambda: not sleepers(marker))
    with pytest.raises(SandboxError):
        await sandbox.exec("true", timeout=60)
    await sandbox.close()
    async with await next_actor.create(SandboxSpec(run=run_name, lease="two")) as fresh:
        assert (await fresh.exec("echo well", timeout=60)).text == "well\n"
    assert await next_actor.purge("") >= 1, "what the dead one left"
