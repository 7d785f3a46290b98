"""Sandboxes from Docker containers, through aiodocker; commands go to the guest over the attached stdin and stdout.

A container's stdin closes with its owner's connection (`StdinOnce`), the guest leaves, and the daemon removes the
container (`AutoRemove`): nothing is left of an owner that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from aiodocker import DockerError

from protocol.errors import ConfigError, SandboxError
from sandbox.base import Capabilities, Limits, Sandbox, SandboxSpec, Snapshot
from sandbox.docker.config import container_archive, container_configuration
from sandbox.docker.container import START_DEADLINE_S, DockerSandbox, remove_container
from sandbox.docker.covering import MAX_FILES, CannotCoverError, commit_covered, cover, why_not
from sandbox.docker.daemon import DockerHost, Failures, default_url
from sandbox.docker.disk import DiskWatch
from sandbox.docker.plain_exec import PlainDockerSandbox
from sandbox.guest.build import guest_binary
from sandbox.guest.pinger import Pinger
from sandbox.guest.sandbox import sandbox_of
from sandbox.namespace.foreign_packages import refuse_visible
from sandbox.owners import is_leftover, new_owner, parse_owner

SNAPSHOT_REPOSITORY = "longhaul-snapshot"


class DockerBackend:
    """Makes containers on one or several daemons; see `Backend`."""

    name = "docker"

    def __init__(
        self,
        run: str,
        urls: Iterable[str] = (),
        tls_dir: Path | None = None,
        max_starts: int = 6,
        with_guest: bool = True,
        mirrors: Mapping[str, str] | None = None,
        image_disk_gib: int = 0,
    ) -> None:
        self._owner = new_owner(run)
        self.hosts = [
            DockerHost(url, tls_dir, max_starts, mirrors, image_disk_gib) for url in list(urls) or [default_url()]
        ]
        self._living: dict[str, DockerSandbox] = {}
        self._pinger = Pinger(self._living.values)
        self._disk_watch = DiskWatch(self._living)
        self._guest: Path | None = None
        self._without_guest = ""
        try:
            self._guest = guest_binary() if with_guest else None
        except ConfigError as error:
            self._without_guest = str(error)

    async def probe(self) -> Capabilities:
        """See `Backend.probe`: available when one daemon answers."""
        if self._without_guest:  # whoever wants plain exec, slow and unable to tell a change, says so
            return _unavailable(self._without_guest)
        infos = await asyncio.gather(*(host.info() for host in self.hosts), return_exceptions=True)
        reasons = []
        for host, info in zip(self.hosts, infos, strict=True):
            if isinstance(info, ConfigError):
                return _unavailable(str(info))
            if isinstance(info, BaseException):
                host.failed()
                reasons.append(f"{host.url}: {info}")
        if len(reasons) == len(self.hosts):
            return _unavailable(f"no daemon answers: {'; '.join(reasons)}; start one (systemctl start docker)")
        info = next(info for info in infos if not isinstance(info, BaseException))
        limits = {
            "memory": "control group" if info.get("MemoryLimit") else "not held: the daemon has no memory controller",
            "processes": "control group" if info.get("PidsLimit") else "not held: the daemon has no pids controller",
            "cpu": "control group" if info.get("CpuCfsQuota") else "not held: the daemon has no cpu controller",
            **self._disk_limits(),
            "commands": "command server in the container" if self._guest else "plain docker exec, as asked",
        }
        return Capabilities(backend=self.name, available=True, isolation="container", limits=limits)

    async def create(self, spec: SandboxSpec) -> DockerSandbox:
        """See `Backend.create`."""
        refuse_visible(spec.absent_packages, [Path(path) for path in spec.read_only_binds], {}, spec.lease)
        image = spec.from_snapshot.reference if spec.from_snapshot is not None else spec.image
        host = self.place(image)
        try:
            image = await host.ensure_image(image)
            async with host.starts:
                try:
                    sandbox = await self._create(host, spec, image)
                except (DockerError, SandboxError) as error:
                    if getattr(error, "status", 0) == 404 and spec.image:  # somebody removed the image
                        host.images.forget(image)
                        await host.ensure_image(image)
                    elif host.has_started or not host.shares_files:
                        raise
                    else:
                        host.shares_files = False  # a socket forwarded from elsewhere
                    sandbox = await self._create(host, spec, image)
            host.has_started = True
        except Failures as error:
            if not isinstance(error, DockerError):
                host.failed()
            raise SandboxError(f"{host.url} cannot start a sandbox of {spec.lease}: {error!r}", kind="start") from error
        self._pinger.start()
        self._disk_watch.start()
        return sandbox

    async def adopt(self, lease: str) -> Sandbox | None:
        """See `Backend.adopt`."""
        return sandbox_of(lease, self._living.values())

    async def purge(self, run: str) -> int:
        """See `Backend.purge`."""
        counts = await asyncio.gather(*(self._purge(host, run) for host in self.hosts if host.is_well))
        return sum(counts)

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See `Backend.delete_snapshot`."""
        for host in self.hosts:
            with contextlib.suppress(DockerError):
                await host.client.images.delete(snapshot.reference, force=True)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._pinger.stop()
        await self._disk_watch.stop()
        closings = (sandbox.close() for sandbox in list(self._living.values()))
        closed = await asyncio.gather(*closings, return_exceptions=True)
        await asyncio.gather(*(host.close() for host in self.hosts))
        for failure in closed:
            if failure is not None:
                raise failure

    async def forget(self, sandbox: DockerSandbox) -> None:
        """A sandbox has ended: see that its container is gone."""
        if self._living.pop(sandbox.container.id, None) is not None:
            sandbox.host.num_alive -= 1
            sandbox.host.images.use(sandbox.image, -1)
            await remove_container(sandbox.container)

    async def take_snapshot(self, sandbox: DockerSandbox) -> Snapshot:
        """Commit a container's file system. Commands should not run meanwhile."""
        tag = secrets.token_hex(8)
        labels = " ".join(f'{name}="{value}"' for name, value in self._labels(sandbox.spec).items())
        try:
            if sandbox.covered:
                binds = list(sandbox.spec.read_only_binds.values())
                keep = (sandbox.host.client, sandbox.container, binds, SNAPSHOT_REPOSITORY, tag, f"LABEL {labels}")
                await commit_covered(*keep)
            else:
                await sandbox.container.commit(repository=SNAPSHOT_REPOSITORY, tag=tag, changes=f"LABEL {labels}")
        except (*Failures, CannotCoverError) as error:
            raise SandboxError(f"cannot take a snapshot of {sandbox.spec.lease}: {error}", kind="snapshot") from error
        reference = f"{SNAPSHOT_REPOSITORY}:{tag}"
        sandbox.host.images.add(reference)
        return Snapshot(backend=self.name, reference=reference)

    def _disk_limits(self) -> dict[str, str]:
        why = why_not(Limits(), self.hosts[0].shares_files, self._guest is not None) or self.hosts[0].no_cover
        if not why:
            return {
                "disk": "a tmpfs of its size under all that is writable",
                "files": f"{MAX_FILES}, by the same tmpfs",
            }
        return {
            "disk": f"largest file by ulimit; the writable layer by a watchdog that looks every 2 s ({why})",
            "files": f"not held ({why})",
        }

    # -- below: how a container is made and removed

    async def _create(self, host: DockerHost, spec: SandboxSpec, image: str) -> DockerSandbox:
        covers = not host.no_cover and not why_not(spec.limits, host.shares_files, self._guest is not None)
        configuration = container_configuration(
            spec, image, self._labels(spec), self._guest, host.shares_files, bounded_at_once=covers
        )
        # Not cancelled half-way: the daemon would make a container that nobody knows of.
        creating = asyncio.ensure_future(host.client.containers.create(configuration))
        try:
            container = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await remove_container(await creating)
            raise
        kind = PlainDockerSandbox if self._guest is None else DockerSandbox
        sandbox = kind(spec, host, container, self)
        self._living[container.id] = sandbox
        host.num_alive += 1
        sandbox.image = image
        host.images.use(image, 1)
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                archive = await asyncio.to_thread(container_archive, spec, self._guest, host.shares_files)
                if archive:
                    await container.put_archive("/", archive)  # type: ignore[no-untyped-call]
                await sandbox.start()
                if covers:
                    await cover(container, spec)
                    sandbox.covered = True
        except CannotCoverError as error:
            await sandbox.close()
            host.no_cover = str(error)
            return await self._create(host, spec, image)
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    def place(self, image: str | None) -> DockerHost:
        """A daemon that is well, rather one that has the image, rather one with few sandboxes."""
        well = [host for host in self.hosts if host.is_well]
        if not well:
            raise SandboxError(f"none of {len(self.hosts)} Docker daemons is well", kind="unavailable")
        return min(well, key=lambda host: (image is not None and not host.images.has(image), host.num_alive))

    def _labels(self, spec: SandboxSpec) -> dict[str, str]:
        deadline = time.time() + spec.ttl_s
        return {
            "longhaul.run": spec.run,
            "longhaul.owner": self._owner.name,
            "longhaul.machine": socket.gethostname(),
            "longhaul.lease": spec.lease,
            "longhaul.deadline": f"{deadline:.0f}",
        }

    async def _purge(self, host: DockerHost, run: str) -> int:
        wanted = {"label": [f"longhaul.run={run}" if run else "longhaul.owner"]}
        try:
            containers = await host.client.containers.list(all=1, filters=json.dumps(wanted))
            images = await host.client.images.list(filters=wanted)
        except Failures as error:
            raise SandboxError(f"{host.url} cannot list its containers: {error}", kind="purge") from error
        leftovers = [container for container in containers if self._is_leftover(container._container["Labels"], run)]
        # one that stays must not keep the others
        removals = await asyncio.gather(*map(remove_container, leftovers), return_exceptions=True)
        tags = [tag for image in images if self._is_leftover(image["Labels"], run) for tag in image["RepoTags"] or []]
        for tag in tags:
            with contextlib.suppress(DockerError):
                await host.client.images.delete(tag, force=True)
        stayed = [failure for failure in removals if failure is not None]
        if stayed:
            raise SandboxError(f"{len(stayed)} containers could not be removed, the first: {stayed[0]}", kind="purge")
        return len(leftovers) + len(tags)

    def _is_leftover(self, labels: dict[str, str], run: str) -> bool:
        """Whether a purge removes it. A dead owner is known as such on its own machine only."""
        owner = parse_owner(labels.get("longhaul.owner", ""))
        if owner is None:
            return False
        if run:
            return owner.run == run
        return labels.get("longhaul.machine") == socket.gethostname() and is_leftover(owner, "")


def _unavailable(reason: str) -> Capabilities:
    return Capabilities(backend="docker", available=False, isolation="none", reason=reason)
