"""A daemon that goes away and comes back: what worked there fails by name, and the next sandbox is well again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import SandboxSpec
from sandbox.docker import daemon
from sandbox.docker.backend import DockerBackend
from tests.sandbox.waiting import until

REAL = "/var/run/docker.sock"


class Door:
    """A socket through which the real daemon is reached, while it is open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def shut(self) -> None:
        """Every connection breaks, and nobody answers any more."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(REAL)
        self._writers |= {writer, inner_writer}
        for source, target in ((reader, inner_writer), (inner_reader, writer)):
            task = asyncio.create_task(_pump(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()


@pytest.mark.docker
async def test_what_worked_there_fails_and_the_next_is_well(
    run_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.path.exists(REAL):  # noqa: ASYNC240, PTH110  (once, before anything waits)
        pytest.skip("no local daemon")
    monkeypatch.setattr(daemon, "UNWELL_S", 0.5)
    door = Door(tmp_path / "docker.sock")
    await door.open()
    backend = DockerBackend(run_name, [f"unix://{tmp_path}/docker.sock"])
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
