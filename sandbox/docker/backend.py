"""Sandboxes from Docker containers, through aiodocker; commands go to the guest over the attached stdin and stdout.

A container's stdin closes with its owner's connection (`StdinOnce`), the guest leaves, and the daemon removes the
container (`AutoRemove`): nothing is left of an owner that was killed. (`sandbox/keeper/containers.py`: the owner may be
the host's keeper.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from aiodocker import DockerError

from protocol.errors import ConfigError, SandboxError
from sandbox.base import Capabilities, Limits, Sandbox, SandboxSpec, Snapshot
from sandbox.docker.config import container_archive, container_configuration
from sandbox.docker.container import START_DEADLINE_S, DockerSandbox, remove_container
from sandbox.docker.covering import MAX_FILES, CannotCoverError, commit_covered, cover, why_not
from sandbox.docker.daemon import DockerHost, Failures, default_url, is_of_daemon
from sandbox.docker.disk import DiskWatch
from sandbox.docker.plain_exec import PlainDockerSandbox
from sandbox.guest.build import guest_binary
from sandbox.guest.pinger import Pinger
from sandbox.guest.sandbox import sandbox_of
from sandbox.namespace.foreign_packages import refuse_visible
from sandbox.owners import is_leftover, new_owner, parse_owner

SNAPSHOT_REPOSITORY = "longhaul-snapshot"
_ABANDONED_S = 600.0  # that no container takes between being made and being started


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
        accounts: Path | None = None,
    ) -> None:
        self._owner = new_owner(run)
        self.hosts = [
            DockerHost(url, tls_dir, max_starts, mirrors, image_disk_gib, accounts)
            for url in list(urls) or [default_url()]
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
        if not any(host.is_well for host in self.hosts):  # attempts are few, and a daemon that restarts is soon back
            await asyncio.sleep(min(host.unwell_s for host in self.hosts))
        host = self.place(image)
        try:
            with host.images.in_use(image):  # the budget does not take it between its pull and its start
                name = await host.ensure_image(image)
                async with host.starts:
                    sandbox = await self._create_patiently(host, spec, image, name)
            host.has_started = True
        except Failures as error:
            if is_of_daemon(error):
                host.failed()
            raise SandboxError(f"{host.url} cannot start a sandbox of {spec.lease}: {error!r}", kind="start") from error
        self._pinger.start()
        self._disk_watch.start()
        return sandbox

    def expect(self, images: Sequence[str]) -> None:
        """See `Backend.expect`: they are pulled where their sandboxes would be placed now."""
        with contextlib.suppress(SandboxError):  # no daemon is well
            by_host: dict[DockerHost, list[str]] = {}
            for image in images:
                by_host.setdefault(self.place(image), []).append(image)
            for host in self.hosts:
                host.images.expect(by_host.get(host, []))

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

    async def _create_patiently(
        self, host: DockerHost, spec: SandboxSpec, image: str | None, name: str
    ) -> DockerSandbox:
        """Once more where that may help."""
        try:
            return await self._create(host, spec, image, name)
        except (DockerError, SandboxError) as error:
            if getattr(error, "status", 0) == 404 and image and image == spec.image:  # somebody removed the image
                host.images.forget(image)
                name = await host.ensure_image(image)
            elif host.has_started or not host.shares_files:
                raise
            else:
                host.shares_files = False  # a socket forwarded from elsewhere
            return await self._create(host, spec, image, name)

    async def _create(self, host: DockerHost, spec: SandboxSpec, image: str | None, name: str) -> DockerSandbox:
        covers = not host.no_cover and not why_not(spec.limits, host.shares_files, self._guest is not None)
        configuration = container_configuration(
            spec, name, self._labels(spec), self._guest, host.shares_files, bounded_at_once=covers
        )
        # Not cancelled half-way: the daemon would make a container that nobody knows of.
        creating = asyncio.ensure_future(host.client.containers.create(configuration))
        try:
            container = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await remove_container(await creating)
            raise
        sandbox = self._kind_of(spec)(spec, host, container, self)
        sandbox.image = image or name
        self.know(sandbox)
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
            return await self._create(host, spec, image, name)
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    def know(self, sandbox: DockerSandbox) -> None:
        """It lives, and is this backend's to end."""
        self._living[sandbox.container.id] = sandbox
        sandbox.host.num_alive += 1
        sandbox.host.images.use(sandbox.image, 1)

    def _kind_of(self, spec: SandboxSpec) -> type[DockerSandbox]:
        return PlainDockerSandbox if self._guest is None else DockerSandbox

    def place(self, image: str | None) -> DockerHost:
        """A daemon that is well, rather one that has the image, rather one with few sandboxes."""
        well = [host for host in self.hosts if host.is_well]
        if not well:
            raise SandboxError(f"none of {len(self.hosts)} Docker daemons is well", kind="unavailable")
        return min(well, key=lambda host: (image is not None and not host.images.has(image), host.num_alive))

    def _labels(self, spec: SandboxSpec) -> dict[str, str]:
        return {
            "longhaul.run": spec.run,
            "longhaul.owner": self._owner.name,
            "longhaul.machine": socket.gethostname(),
            "longhaul.lease": spec.lease,
        }

    async def _purge(self, host: DockerHost, run: str) -> int:
        wanted = {"label": [f"longhaul.run={run}" if run else "longhaul.owner"]}
        try:
            containers = await host.client.containers.list(all=1, filters=json.dumps(wanted))
            images = await host.client.images.list(filters=wanted)
            now = _time_of(await host.client.system.info())
        except Failures as error:
            raise SandboxError(f"{host.url} cannot list its containers: {error}", kind="purge") from error
        leftovers = [
            container
            for container in containers
            if self._is_leftover(container._container["Labels"], run) or _is_abandoned(container._container, now)
        ]
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
        """Whether a purge removes it. Hosts may share a daemon: what was made by another one is its own to remove."""
        owner = parse_owner(labels.get("longhaul.owner", ""))
        if owner is None or labels.get("longhaul.machine") != socket.gethostname():
            return False
        return owner.run == run if run else is_leftover(owner, "")


def _time_of(info: Mapping[str, Any]) -> float:
    """A daemon's clock; where it tells none that can be read, so early that nothing is old."""
    try:
        return datetime.fromisoformat(info["SystemTime"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def _is_abandoned(container: Mapping[str, Any], now: float) -> bool:
    """Whether whoever made it, on whatever host, died before it ran: what runs ends by itself, however old it is.

    Args:
        now: by the daemon's clock, as the time at which it was made.
    """
    return container["State"] in ("created", "exited", "dead") and now - float(container["Created"]) > _ABANDONED_S


def _unavailable(reason: str) -> Capabilities:
    return Capabilities(backend="docker", available=False, isolation="none", reason=reason)
