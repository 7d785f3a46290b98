"""Nothing of a run is left behind: processes, sandboxes, sockets, shared memory; nor of one whose owner was killed."""

from __future__ import annotations

import asyncio
import contextlib

import psutil

from cluster import run_files
from cluster.run_files import RunFiles
from protocol.config import Settings
from protocol.errors import LonghaulError
from sandbox.backends import open_backend
from sandbox.namespace.backend import purge_namespaces

_KILL_WAIT_S = 5.0


async def remove_everything(settings: Settings, files: RunFiles) -> None:
    """End what is left of this run after its orderly stop."""
    kill(descendants())
    await _purge_sandboxes(settings, files.name)
    run_files.release(files)


async def reap_dead_runs(settings: Settings) -> None:
    """Remove what runs on this host left whose owner was killed. Never touches a living run."""
    for files in run_files.dead_runs():
        await _purge_sandboxes(settings, files.name)
        run_files.reap(files)


async def clear_host(settings: Settings, files: RunFiles) -> None:
    """Leave nothing of a run on this host. What lives is ended first: opening a backend may take a while."""
    for process in run_files.processes_in(files.private):
        with contextlib.suppress(psutil.NoSuchProcess):
            kill([process, *process.children(recursive=True)])
    run_files.reap(files)
    await asyncio.to_thread(purge_namespaces, files.name)
    if settings.sandbox.backend != "namespace":
        await _purge_sandboxes(settings, files.name)


def descendants() -> list[psutil.Process]:
    """Every process that this one started, directly or not. One whose own parent has ended is no longer found."""
    return psutil.Process().children(recursive=True)


def kill(started: list[psutil.Process]) -> None:
    """SIGKILL those that are still there, and wait until they are gone."""
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(started, timeout=_KILL_WAIT_S)


async def _purge_sandboxes(settings: Settings, run: str) -> None:
    with contextlib.suppress(LonghaulError):  # a backend that cannot be opened has no sandboxes
        backend = await open_backend(settings.sandbox, run)
        try:
            await backend.purge(run)
        finally:
            await backend.close()
