"""Holds the disk limit of containers where the daemon's file system has no quotas: what wrote too much is killed.

A single file is bounded by ulimit at once; the sum of all is asked of the daemon every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from protocol.errors import SandboxError
from sandbox.base import SandboxSpec
from sandbox.docker.daemon import DockerHost, Failures
from sandbox.upkeep import Upkeep

PERIOD_S = 2.0
SHARE = 0.1  # of the time, at most, that daemons spend on adding up sizes


class Watched(Protocol):
    """What a watch needs of a sandbox."""

    spec: SandboxSpec
    host: DockerHost
    notice: str

    async def kill_all(self) -> None:
        """See `Sandbox.kill_all`."""
        ...


class DiskWatch(Upkeep):
    """One task for all containers of a backend."""

    name = "disk-watch"

    def __init__(self, living: Mapping[str, Watched]) -> None:
        super().__init__()
        self._living = living

    async def _run(self) -> None:
        """Waits for its period; unblocked by time, ended by `stop`."""
        loop = asyncio.get_running_loop()
        pause = PERIOD_S
        while True:
            await asyncio.sleep(pause)
            began = loop.time()
            for host in {sandbox.host for sandbox in self._living.values()}:
                for container, size in (await _sizes(host)).items():
                    if container in self._living:
                        await _check(self._living[container], size)
            pause = max(PERIOD_S, (loop.time() - began) / SHARE)


async def _sizes(host: DockerHost) -> dict[str, int]:
    try:
        containers = await host.client.containers.list(size=1)
    except Failures:
        return {}  # a daemon that does not answer is noticed by those who need it
    return {container.id: container["SizeRw"] for container in containers if "SizeRw" in container}


async def _check(sandbox: Watched, size: int) -> None:
    if size <= sandbox.spec.limits.disk_mib << 20:
        return
    sandbox.notice = f"\n[killed: {size >> 20} MiB written, {sandbox.spec.limits.disk_mib} MiB allowed]\n"
    try:
        await sandbox.kill_all()
    except SandboxError:
        return  # it is closing
