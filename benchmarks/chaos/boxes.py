"""The sandboxes of a run under faults: how one of them is killed from outside, and what is left of them at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import aiodocker
import psutil

from benchmarks.chaos.daemon_door import DaemonDoor
from sandbox.docker.backend import DockerBackend
from sandbox.namespace.backend import purge_namespaces
from sandbox.owners import keeper_of

_REMOVAL_S = 30.0  # for the daemon to have removed what ended


class Boxes(Protocol):
    """Those of one backend."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the run is told of them."""
        ...

    @property
    def door(self) -> DaemonDoor | None:
        """The way to their daemon, where they have one."""
        ...

    async def open(self) -> None:
        """Before the run."""
        ...

    async def kill_one(self, run: str, chance: random.Random) -> bool:
        """Kill one with all that is in it; whether there was one."""
        ...

    async def close(self, run: str) -> int:
        """After the run: remove what is its own, and say how much stayed."""
        ...


class NamespaceBoxes:
    """Children of the run's keeper."""

    def __init__(self) -> None:
        self.settings = {"backend": "namespace"}
        self.door: DaemonDoor | None = None

    async def open(self) -> None:
        """See `Boxes`."""

    async def kill_one(self, run: str, chance: random.Random) -> bool:
        """See `Boxes`."""
        keeper = keeper_of(run)
        with contextlib.suppress(psutil.NoSuchProcess):
            guests = psutil.Process(keeper.pid).children() if keeper is not None else []
            if guests:
                chance.choice(guests).kill()
                return True
        return False

    async def close(self, run: str) -> int:
        """See `Boxes`; its processes are counted where processes are."""
        purge_namespaces(run)
        return 0


class ContainerBoxes:
    """Containers of the local Docker daemon, reached through a door of the run's own."""

    def __init__(self, directory: Path) -> None:
        self.door: DaemonDoor | None = DaemonDoor(directory / "docker.sock")

    @property
    def settings(self) -> dict[str, Any]:
        """See `Boxes`."""
        assert self.door is not None
        return {"backend": "docker", "docker_hosts": [self.door.url]}

    async def open(self) -> None:
        """See `Boxes`."""
        assert self.door is not None
        await self.door.open()

    async def kill_one(self, run: str, chance: random.Random) -> bool:
        """See `Boxes`."""
        async with aiodocker.Docker() as docker:
            containers = await _of(docker, run, running=True)
            if not containers:
                return False
            with contextlib.suppress(aiodocker.DockerError):  # it ended meanwhile
                await chance.choice(containers).kill()
            return True

    async def close(self, run: str) -> int:
        """See `Boxes`. What was made and never started is removed as at a run's end; the daemon does the rest."""
        assert self.door is not None
        backend = DockerBackend(run)
        await backend.purge(run)
        await backend.close()
        until = time.monotonic() + _REMOVAL_S
        async with aiodocker.Docker() as docker:
            while (left := await _of(docker, run)) and time.monotonic() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            for container in left:
                with contextlib.suppress(aiodocker.DockerError):
                    await container.delete(force=True, v=True)
        await self.door.shut()
        return len(left)


async def _of(docker: aiodocker.Docker, run: str, *, running: bool = False) -> Sequence[Any]:
    wanted = {"label": [f"longhaul.run={run}"]} | ({"status": ["running"]} if running else {})
    containers: Sequence[Any] = await docker.containers.list(all=1, filters=json.dumps(wanted))
    return containers
