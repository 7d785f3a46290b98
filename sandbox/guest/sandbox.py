"""What every sandbox with a guest has in common: paths, commands, files; a backend adds its start, end and snapshot."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from msgspec.structs import replace

from sandbox.base import Command, ExecResult, Sandbox, SandboxSpec
from sandbox.guest.client import GuestClient
from sandbox.guest.tunnel import Accept
from sandbox.listings import Listing
from sandbox.patches import Change


class GuestSandbox(Sandbox):
    """One whose commands and files go through a `GuestClient`."""

    def __init__(self, spec: SandboxSpec, client: GuestClient) -> None:
        self.spec = spec
        self.client = client

    async def run(self, command: Command) -> ExecResult:
        """See `Sandbox.run`."""
        place, most = self._absolute(command.cwd), command.max_output
        return await self.client.exec(command.argv, command.timeout, place, command.env, most, command.lasts)

    async def rejoin(self, timeout: float) -> ExecResult | None:
        """See `Sandbox.rejoin`."""
        return await self.client.rejoin(timeout)

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """See `Sandbox.write`."""
        await self.client.write(self._absolute(path), data, mode)

    async def read(self, path: str, max_bytes: int = 1 << 24) -> bytes:
        """See `Sandbox.read`."""
        return await self.client.read(self._absolute(path), max_bytes)

    async def listen(self, accept: Accept) -> int:
        """See `Sandbox.listen`."""
        return await self.client.listen(accept)

    async def list_tree(self) -> Listing:
        """See `Sandbox.list_tree`."""
        return await self.client.list_tree(self._absolute(""))

    async def fetch(self, path: str, max_bytes: int) -> Change:
        """See `Sandbox.fetch`."""
        return await self.client.fetch(self._absolute(""), path, max_bytes)

    async def place(self, change: Change) -> None:
        """See `Sandbox.place`."""
        await self.client.place(self._absolute(""), change)

    async def kill_all(self) -> None:
        """See `Sandbox.kill_all`."""
        await self.client.kill_all()

    def _absolute(self, path: str) -> str:
        return posixpath.join(self.spec.workdir, path) if path else self.spec.workdir


def twin_spec(spec: SandboxSpec) -> SandboxSpec:
    """Of another sandbox like this one; the lease stays the first one's, for whoever adopts by it."""
    return replace(spec, lease=f"{spec.lease}.twin", user_paths=None, kept=False)


def sandbox_of(lease: str, living: Iterable[GuestSandbox]) -> Sandbox | None:
    """The one of `living` that belongs to a lease and still answers."""
    return next((sandbox for sandbox in living if sandbox.spec.lease == lease and sandbox.client.alive), None)
