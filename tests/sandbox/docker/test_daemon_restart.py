"""A daemon that goes away and comes back: what worked there fails by name, and the next sandbox is well again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from benchmarks.chaos.daemon_door import REAL, DaemonDoor
from protocol.errors import SandboxError
from sandbox.base import SandboxSpec
from sandbox.docker import daemon
from sandbox.docker.backend import DockerBackend
from tests.waiting import until


@pytest.mark.docker
async def test_what_worked_there_fails_and_the_next_is_well(
    run_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not REAL.exists():
        pytest.skip("no local daemon")
    monkeypatch.setattr(daemon, "UNWELL_S", 0.5)
    door = DaemonDoor(tmp_path / "docker.sock")
    await door.open()
    backend = DockerBackend(run_name, [door.url])
    if not (await backend.probe()).available:
        await backend.close()
        await door.shut()
        pytest.skip("no daemon answers")
    sandbox = await backend.create(SandboxSpec(run=run_name, lease="before"))
    waiting = asyncio.create_task(sandbox.exec("touch /testbed/runs; sleep 1000", timeout=600))

    async def runs() -> bool:
        return (await sandbox.exec("test -e /testbed/runs", timeout=20)).exit_code == 0

    await until(runs)
    await door.shut()
    with pytest.raises(SandboxError) as died:
        await asyncio.wait_for(waiting, 60)
    assert died.value.kind == "died"
    with pytest.raises(SandboxError) as refused:
        await asyncio.wait_for(backend.create(SandboxSpec(run=run_name, lease="meanwhile")), 60)
    assert refused.value.kind in ("start", "unavailable"), refused.value
    with contextlib.suppress(SandboxError):  # it cannot be removed now; it went with its connection
        await sandbox.close()
    await door.open()
    await until(lambda: backend.hosts[0].is_well)
    async with await backend.create(SandboxSpec(run=run_name, lease="after")) as fresh:
        assert (await fresh.exec("echo well", timeout=60)).text == "well\n"

    async def is_purged() -> bool:
        return await backend.purge(run_name) == 0

    await until(is_purged)
    await backend.close()
    await door.shut()
