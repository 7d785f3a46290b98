"""Which backend a run uses: the one asked for, or what this host has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.config import SandboxSettings
from protocol.errors import ConfigError, SandboxError
from sandbox.base import Backend, Capabilities, Limits, Sandbox, SandboxSpec, Snapshot
from sandbox.fake import FakeBackend
from sandbox.keeper.kept import KeptBackend
from sandbox.namespace.backend import NamespaceBackend
from sandbox.pool import Pool


class AutoBackend:
    """Docker for what has an image, where a daemon answers; namespaces for all else."""

    name = "auto"

    def __init__(self, namespace: Backend, docker: Backend | None, why_no_docker: str) -> None:
        self._namespace = namespace
        self._docker = docker
        self._why_no_docker = why_no_docker

    async def probe(self) -> Capabilities:
        """Those of the namespaces."""
        return await self._namespace.probe()

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """See `Backend.create`."""
        if spec.image is None:
            return await self._namespace.create(spec)
        if self._docker is None:
            raise SandboxError(f"image {spec.image} needs Docker: {self._why_no_docker}", kind="unavailable")
        return await self._docker.create(spec)

    def expect(self, images: Sequence[str]) -> None:
        """See `Backend.expect`."""
        if self._docker is not None:
            self._docker.expect(images)

    async def adopt(self, lease: str) -> Sandbox | None:
        """See `Backend.adopt`."""
        for backend in self._all():
            sandbox = await backend.adopt(lease)
            if sandbox is not None:
                return sandbox
        return None

    async def purge(self, run: str) -> int:
        """See `Backend.purge`."""
        return sum([await backend.purge(run) for backend in self._all()])

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See `Backend.delete_snapshot`."""
        for backend in self._all():
            if backend.name == snapshot.backend:
                await backend.delete_snapshot(snapshot)

    async def close(self) -> None:
        """See `Backend.close`."""
        for backend in reversed(self._all()):  # containers that are kept need the way to their keeper
            await backend.close()

    def _all(self) -> list[Backend]:
        return [self._namespace] if self._docker is None else [self._namespace, self._docker]


def make_limits(settings: SandboxSettings) -> Limits:
    """The limits of one sandbox, as set."""
    return Limits(
        memory_mib=settings.memory_mib,
        max_processes=settings.max_processes,
        cpus=settings.cpus,
        disk_mib=settings.disk_mib,
    )


def user_paths(settings: SandboxSettings) -> tuple[str, ...] | None:
    """What a user without root owns besides the work directory, as set; None where the agent has root."""
    return tuple(settings.user_paths) if settings.user == "agent" else None


class KeptFor(NamedTuple):
    """Whose sandboxes outlive it, held by the host's keeper, for whoever has its name next."""

    actor: str
    keeper_log: Path
    image_accounts: Path | None = None  # directory in which the run's processes on this host say what they pulled


async def open_backend(settings: SandboxSettings, run: str, kept_for: KeptFor | None = None) -> Backend:
    """The backend asked for, proved to work; what dead owners left is removed first.

    Raises `ConfigError` saying why it does not work and what to do.
    """
    if settings.user == "agent" and settings.backend == "unisolated-for-debugging":
        raise ConfigError("sandbox.user: nothing is isolated there, and whoever runs this is the user", kind="user")
    match settings.backend:
        case "namespace":
            return await _proved(_namespace(settings, run, _kept(settings, run, kept_for)), "--sandbox.backend docker")
        case "unisolated-for-debugging":
            return await _proved(FakeBackend(run), "--sandbox.backend namespace")
        case "docker":
            accounts = kept_for.image_accounts if kept_for else None
            docker = _docker(settings, run, _kept(settings, run, kept_for), accounts)
            return await _proved(docker, "--sandbox.backend namespace")
        case "kubernetes":
            return await _proved(_kubernetes(settings, run), "--sandbox.backend docker")
        case "auto":
            return await _auto(settings, run, kept_for)


async def _auto(settings: SandboxSettings, run: str, kept_for: KeptFor | None) -> Backend:
    kept, accounts = _kept(settings, run, kept_for), kept_for.image_accounts if kept_for else None
    namespace, docker = _namespace(settings, run, kept), _docker(settings, run, kept, accounts)
    inside, outside = await asyncio.gather(namespace.probe(), docker.probe())
    if inside.available:
        if not outside.available:
            await docker.close()
        backend = AutoBackend(namespace, docker if outside.available else None, outside.reason)
        await _reap(backend)
        return backend
    await namespace.close()
    if outside.available:
        return docker
    await docker.close()
    raise ConfigError(
        f"no sandbox can be isolated here. Namespaces: {inside.reason}. Docker: {outside.reason}. "
        "Without isolation, at your own risk: --sandbox.backend unisolated-for-debugging",
        kind="no_isolation",
    )


async def _reap(backend: Backend) -> None:
    """Remove what dead owners left. A daemon that will not list its containers is no reason not to start."""
    with contextlib.suppress(SandboxError):
        await backend.purge("")


async def _proved(backend: Backend, alternative: str) -> Backend:
    capabilities = await backend.probe()
    if capabilities.available:
        await _reap(backend)
        return backend
    await backend.close()
    raise ConfigError(
        f"sandbox backend {backend.name} does not work here: {capabilities.reason}; try {alternative}",
        kind="backend_unavailable",
    )


def _kept(settings: SandboxSettings, run: str, kept_for: KeptFor | None) -> KeptBackend | None:
    if kept_for is None:
        return None
    return KeptBackend(run, kept_for.actor, kept_for.keeper_log, settings.max_starts)


def _namespace(settings: SandboxSettings, run: str, kept: KeptBackend | None) -> Backend:
    return Pool(kept or NamespaceBackend(run, settings.max_starts), 0)


def _docker(settings: SandboxSettings, run: str, kept: KeptBackend | None, accounts: Path | None) -> Backend:
    from sandbox.docker.backend import DockerBackend
    from sandbox.docker.registry import read_mirrors
    from sandbox.keeper.containers import KeptDockerBackend

    hosts, tls_dir, max_starts = settings.docker_hosts, settings.docker_tls_dir, settings.max_starts
    mirrors, disk_gib = read_mirrors(settings.image_mirrors), settings.image_disk_gib
    backend = (
        DockerBackend(run, hosts, tls_dir, max_starts, True, mirrors, disk_gib, accounts)
        if kept is None
        else KeptDockerBackend(run, kept, hosts, tls_dir, max_starts, mirrors, disk_gib, accounts)
    )
    return Pool(backend, settings.warm)


def _kubernetes(settings: SandboxSettings, run: str) -> Backend:
    try:
        from sandbox.kubernetes.backend import KubernetesBackend
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sandbox.backend kubernetes needs {error.name}; type: pip install 'longhaul[kubernetes]'", kind="extra"
        ) from error
    if settings.image_mirrors or settings.image_disk_gib:
        raise ConfigError(
            "sandbox.image_mirrors and sandbox.image_disk_gib are for Docker daemons; with sandbox.backend kubernetes "
            "the nodes pull and keep images, by their own settings",
            kind="not_of_kubernetes",
        )

    async def any_room(limits: Limits) -> None:
        """Its sandboxes are not on this host: the cluster's scheduler has them wait."""

    return Pool(KubernetesBackend(run, settings.kubernetes, settings.max_starts), settings.warm, any_room)
