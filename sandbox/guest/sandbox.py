"""What every sandbox with a guest has in common: paths, commands, files; a backend adds its start, end and snapshot."""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from sandbox.base import ExecResult, Sandbox, SandboxSpec, Snapshot
from sandbox.guest.client import GuestClient


class GuestSandbox(ABC):
    """A `Sandbox` whose commands and files go through a `GuestClient`."""

    def __init__(self, spec: SandboxSpec, client: GuestClient) -> None:
        self.spec = spec
        self.client = client

    async def exec(
        self,
        cmd: str | list[str],
        timeout: float,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        max_output: int = 1 << 16,
    ) -> ExecResult:
        """See `Sandbox.exec`."""
        argv = ["bash", "-c", cmd] if isinstance(cmd, str) else cmd
        if not argv or timeout <= 0:
            raise ValueError(f"a command needs words and a positive timeout, got {argv!r} and {timeout}")
        return await self.client.exec(argv, timeout, self._absolute(cwd or ""), env, max_output)

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """See `Sandbox.write`."""
        await self.client.write(self._absolute(path), data, mode)

    async def read(self, path: str, max_bytes: int = 1 << 24) -> bytes:
        """See `Sandbox.read`."""
        return await self.client.read(self._absolute(path), max_bytes)

    async def kill_all(self) -> None:
        """See `Sandbox.kill_all`."""
        await self.client.kill_all()

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""

    @abstractmethod
    async def close(self) -> None:
        """See `Sandbox.close`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _absolute(self, path: str) -> str:
        return posixpath.join(self.spec.workdir, path) if path else self.spec.workdir


def sandbox_of(lease: str, living: Iterable[GuestSandbox]) -> Sandbox | None:
    """The one of `living` that belongs to a lease and still answers."""
    return next((sandbox for sandbox in living if sandbox.spec.lease == lease and sandbox.client.alive), None)
