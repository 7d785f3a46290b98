"""Containers that a host's keeper holds, so that they outlive the process that made them.

The process that wants one makes it (image, disk, files), as any other; the keeper attaches to it, starts it and relays
its guest's conversation. When that process dies, the next of its name is given the conversation and the container's id,
and goes on. The daemon's own end of the rule stays as it was: a container ends with the keeper's connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from aiodocker.containers import DockerContainer

from protocol.errors import SandboxError
from sandbox.base import Capabilities, Sandbox, SandboxSpec, Snapshot
from sandbox.docker.backend import DockerBackend
from sandbox.docker.container import DockerSandbox, remove_container
from sandbox.docker.daemon import DockerHost
from sandbox.guest.pinger import Pinger
from sandbox.guest.process import GuestConnection
from sandbox.guest.relay import Relay
from sandbox.keeper.kept import KeptBackend
from sandbox.keeper.requests import Given, HeldContainer, Hold, Note
from sandbox.owners import keeper_of


class RelayedContainer(DockerSandbox):
    """In the keeper: a container whose guest another process talks to."""

    _relay: Relay | None = None

    async def pass_on(self, connection: socket.socket) -> None:
        """Let whoever is at the other end of `connection` work here from now on."""
        if self._relay is not None:
            self._relay.end()
        relay = self._relay = Relay(self.client)
        await asyncio.get_running_loop().create_connection(lambda: relay, sock=connection.dup())

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if self._relay is not None:
            self._relay.end()
        await super().close()


class HeldContainers:
    """In the keeper: attaches to containers, and keeps their guests alive."""

    def __init__(self) -> None:
        self._hosts: dict[tuple[str, str], DockerHost] = {}
        self._living: dict[str, RelayedContainer] = {}
        self._pinger = Pinger(self._living.values)

    async def hold(self, spec: SandboxSpec, held: HeldContainer) -> RelayedContainer:
        """Attach to a container that was made, and start it. Raises `SandboxError`."""
        place = (held.url, held.tls_dir)
        if place not in self._hosts:
            self._hosts[place] = DockerHost(held.url, Path(held.tls_dir) if held.tls_dir else None, 1)
        host = self._hosts[place]
        container = host.client.containers.container(held.container)
        sandbox = RelayedContainer(spec, host, container, self)
        self._living[held.container] = sandbox
        try:
            await sandbox.start()
        except BaseException:
            await sandbox.close()
            raise
        self._pinger.start()
        return sandbox

    async def close(self) -> None:
        """End all of them."""
        await self._pinger.stop()
        closings = (sandbox.close() for sandbox in list(self._living.values()))
        await asyncio.gather(*closings, return_exceptions=True)
        await asyncio.gather(*(host.close() for host in self._hosts.values()))

    async def forget(self, sandbox: DockerSandbox) -> None:
        """See `Maker.forget`."""
        if self._living.pop(sandbox.container.id, None) is not None:
            await remove_container(sandbox.container)

    async def create(self, spec: SandboxSpec) -> DockerSandbox:
        """See `Maker.create`: whoever works in it makes its own."""
        raise SandboxError(f"the keeper makes no container for {spec.lease}", kind="keeper")

    async def take_snapshot(self, sandbox: DockerSandbox) -> Snapshot:
        """See `Maker.take_snapshot`: as `create`."""
        raise SandboxError(f"the keeper takes no snapshot of {sandbox.spec.lease}", kind="keeper")


class KeptContainer(DockerSandbox):
    """In the process that works in it: a container of its own making, or a predecessor's, that the keeper holds."""

    def __init__(
        self, spec: SandboxSpec, host: DockerHost, container: DockerContainer, backend: KeptDockerBackend
    ) -> None:
        super().__init__(spec, host, container, backend)
        self._kept_by = backend
        self._connection: GuestConnection | None = None

    async def start(self) -> None:
        """Have the keeper attach and start it."""
        self.talk_over(await self._kept_by.hold(self))

    def talk_over(self, connection: GuestConnection) -> None:
        """Its guest's conversation, from the keeper."""
        self._connection, self.client = connection, connection.client

    async def hand_over(self) -> None:
        """See `Sandbox.hand_over`."""
        await super().hand_over()
        await self._kept_by.note(self)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if self._connection is not None:
            self._connection.drop()
            with contextlib.suppress(SandboxError):  # a keeper that is gone took it along
                await self._kept_by.kept.end(self.container.id)
        await super().close()

    @property
    def held(self) -> HeldContainer:
        """What whoever adopts it must know."""
        tls_dir = str(self._kept_by.tls_dir) if self._kept_by.tls_dir else ""
        return HeldContainer(
            url=self.host.url,
            tls_dir=tls_dir,
            container=self.container.id,
            covered=self.covered,
            is_users=self._is_users,
            image=self.image,
        )

    def recall(self, held: HeldContainer) -> None:
        """It is as a predecessor left it."""
        self.covered, self._is_users, self.image = held.covered, held.is_users, held.image


class KeptDockerBackend(DockerBackend):
    """A `DockerBackend` whose sandboxes that are to be kept are held by the host's keeper.

    Args:
        kept: this process's way to the keeper.
    """

    def __init__(
        self,
        run: str,
        kept: KeptBackend,
        urls: Iterable[str] = (),
        tls_dir: Path | None = None,
        max_starts: int = 6,
        mirrors: Mapping[str, str] | None = None,
        image_disk_gib: int = 0,
        accounts: Path | None = None,
    ) -> None:
        super().__init__(
            run, urls, tls_dir, max_starts, mirrors=mirrors, image_disk_gib=image_disk_gib, accounts=accounts
        )
        self.kept, self.tls_dir = kept, tls_dir
        self._run = run
        kept.of_containers = self._revive

    async def probe(self) -> Capabilities:
        """See `Backend.probe`. What a predecessor left waits for this process from then on."""
        if keeper_of(self._run) is not None:
            with contextlib.suppress(SandboxError):  # whoever creates or adopts is told
                await self.kept.attend()
        return await super().probe()

    async def create(self, spec: SandboxSpec) -> DockerSandbox:
        """See `Backend.create`."""
        if spec.kept:
            await self.kept.attend()  # its keeper owns the container
        sandbox = await super().create(spec)
        if isinstance(sandbox, KeptContainer):
            await self.note(sandbox)
        return sandbox

    async def adopt(self, lease: str) -> Sandbox | None:
        """See `Backend.adopt`."""
        return await super().adopt(lease) or await self.kept.adopt(lease)

    async def hold(self, sandbox: KeptContainer) -> GuestConnection:
        """Have the keeper attach to a container that was made."""
        word = await self.kept.attend()
        asked = Hold(pass_word=word, name=sandbox.container.id, spec=sandbox.spec, held=sandbox.held)
        taken = await self.kept.take(asked)
        assert taken is not None, "a container is held or refused"
        return taken[1]

    async def note(self, sandbox: KeptContainer) -> None:
        """Tell the keeper how it is by now."""
        await self.kept.tell(Note(name=sandbox.container.id, held=sandbox.held))

    async def _revive(self, given: Given, connection: GuestConnection) -> Sandbox:
        """A container that a process of this one's name left."""
        held = given.held
        assert held is not None
        host = next((host for host in self.hosts if host.url == held.url), None)
        if host is None:
            connection.drop()
            raise SandboxError(
                f"the container of {given.spec.lease} is on {held.url}, which is not used here", kind="lost"
            )
        sandbox = KeptContainer(given.spec, host, host.client.containers.container(held.container), self)
        sandbox.talk_over(connection)
        sandbox.recall(held)
        self.know(sandbox)
        return sandbox

    async def close(self) -> None:
        """See `Backend.close`."""
        await super().close()
        await self.kept.close()

    def _kind_of(self, spec: SandboxSpec) -> type[DockerSandbox]:
        return KeptContainer if spec.kept and self._guest is not None else super()._kind_of(spec)

    def _labels(self, spec: SandboxSpec) -> dict[str, str]:
        labels = super()._labels(spec)
        keeper = keeper_of(self._run) if spec.kept else None
        return labels | ({"longhaul.owner": keeper.name} if keeper is not None else {})
