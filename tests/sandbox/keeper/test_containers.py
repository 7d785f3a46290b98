"""Containers that a keeper holds: what stays when the process that works in them is killed, and what does not."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import Sandbox, SandboxSpec
from sandbox.keeper.containers import KeptContainer, KeptDockerBackend
from sandbox.keeper.kept import KeptBackend
from sandbox.owners import keeper_of
from tests.waiting import until

pytestmark = pytest.mark.docker
ACTOR = """
import asyncio, sys
from pathlib import Path
from sandbox.base import SandboxSpec
from sandbox.keeper.containers import KeptDockerBackend
from sandbox.keeper.kept import KeptBackend

async def main():
    run, keeper_log = sys.argv[1:]
    backend = KeptDockerBackend(run, KeptBackend(run, "actor-0", Path(keeper_log)))
    kept = await backend.create(SandboxSpec(run=run, lease="kept", kept=True))
    graded = await backend.create(SandboxSpec(run=run, lease="graded"))
    await kept.write("file", b"as it was")
    await kept.exec("(setsid sleep 1000 &) ; true", timeout=60)
    await asyncio.sleep(0.1)  # what began in the same tick as a command that is ended counts as its child
    waiting = asyncio.create_task(kept.exec("echo ran >> runs; sleep 2000", timeout=600))
    while (await kept.exec("cat runs", timeout=60)).text != "ran\\n":
        pass
    print("ready", graded.container.id, flush=True)
    await waiting

asyncio.run(main())
"""


async def lacks(sandbox: Sandbox, command: str) -> bool:
    """Whether no process there has that command."""
    return command not in (await sandbox.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", timeout=60)).text


@pytest.fixture
async def next_actor(run_name: str, tmp_path: Path) -> AsyncIterator[KeptDockerBackend]:
    """The process that comes back under the name of the one that was killed."""
    backend = KeptDockerBackend(run_name, KeptBackend(run_name, "actor-0", tmp_path / "keeper.log"))
    if not (capabilities := await backend.probe()).available:
        await backend.close()
        pytest.skip(capabilities.reason)
    yield backend
    await backend.close()
    assert keeper_of(run_name) is None, "the last that leaves takes the keeper along"
    assert await backend.purge(run_name) == 0
    await backend.close()


async def test_a_killed_actor_leaves_its_container_to_the_next_as_it_was(
    next_actor: KeptDockerBackend, run_name: str, tmp_path: Path
) -> None:
    actor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ACTOR, run_name, str(tmp_path / "keeper.log")), stdout=asyncio.subprocess.PIPE
    )
    assert actor.stdout is not None
    async with asyncio.timeout(120):
        said = (await actor.stdout.readline()).split()
    assert said[0] == b"ready"
    os.kill(actor.pid, signal.SIGKILL)
    await actor.wait()
    actor._transport.close()  # type: ignore[attr-defined]

    assert await next_actor.purge("") >= 0  # what dead owners left: the container that is kept is none of it
    sandbox = await next_actor.adopt("kept")
    assert isinstance(sandbox, KeptContainer)
    assert await sandbox.read("file") == b"as it was"
    assert (await sandbox.exec("cat runs", timeout=60)).text == "ran\n", "a command is run once"
    await until(lambda: lacks(sandbox, "sleep 2000"))  # whose result nobody waits for any more
    assert not await lacks(sandbox, "sleep 1000")  # what ran in the background runs on
    assert sandbox.covered == (not sandbox.host.no_cover and "tmpfs" in (await next_actor.probe()).limits["disk"])
    graded = sandbox.host.client.containers.container(said[1].decode())
    await until(lambda: gone(graded))  # one that was not to be kept ends with its process
    await sandbox.close()
    assert await gone(sandbox.container)
    assert await next_actor.adopt("kept") is None


async def gone(container: object) -> bool:
    from aiodocker import DockerError

    try:
        await container.show()  # type: ignore[attr-defined]
    except DockerError as error:
        return error.status == 404
    return False


async def test_nobody_comes_back(next_actor: KeptDockerBackend, run_name: str, tmp_path: Path) -> None:
    other = KeptDockerBackend(run_name, KeptBackend(run_name, "actor-1", tmp_path / "keeper.log"))
    sandbox = await other.create(SandboxSpec(run=run_name, lease="left", kept=True, ttl_s=5))
    assert isinstance(sandbox, KeptContainer)
    assert other.kept._life is not None
    other.kept._life.cancel()  # as if it had been killed
    await asyncio.wait([other.kept._life])
    await until(lambda: gone(sandbox.container))
    with pytest.raises(SandboxError):
        await sandbox.exec("true", timeout=60)
    assert await next_actor.adopt("left") is None
    await other.close()


async def test_a_container_works_as_any_other_and_its_twin_is_not_kept(
    next_actor: KeptDockerBackend, run_name: str
) -> None:
    async with await next_actor.create(SandboxSpec(run=run_name, lease="one", kept=True)) as sandbox:
        await sandbox.write("a", b"1")
        assert (await sandbox.exec("cat a; echo 2", timeout=60)).text == "12\n"
        assert [record async for record in _names(sandbox)] == ["a"]
        async with await sandbox.twin() as twin:
            assert not isinstance(twin, KeptContainer)
            assert (await twin.exec("echo twin", timeout=60)).text == "twin\n"


async def _names(sandbox: Sandbox) -> AsyncIterator[str]:
    for record in (await sandbox.list_tree()).records:
        yield record[66:].decode()


async def test_a_container_waits_for_whoever_is_back(
    next_actor: KeptDockerBackend, run_name: str, tmp_path: Path
) -> None:
    await next_actor.create(SandboxSpec(run=run_name, lease="late", kept=True, ttl_s=5))
    successor = KeptDockerBackend(run_name, KeptBackend(run_name, "actor-0", tmp_path / "keeper.log"))
    try:
        assert (await successor.probe()).available
        await asyncio.sleep(7)  # with nobody there at all it would have ended after five seconds
        taken = await successor.adopt("late")
        assert taken is not None
        assert (await taken.exec("echo well", timeout=60)).text == "well\n"
    finally:
        await successor.close()
