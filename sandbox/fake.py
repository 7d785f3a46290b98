"""A backend that isolates nothing: real files in a temporary directory, real commands of this very user.

For tests that need speed and for debugging by hand; a run takes it only when asked for `unisolated-for-debugging`. Work
directories are imitated by replacing their name in commands, paths and output, so `/testbed` means the right directory.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from protocol.errors import ConfigError, SandboxError
from sandbox.base import Capabilities, Command, ExecResult, Sandbox, SandboxSpec, Snapshot
from sandbox.guest.build import guest_binary
from sandbox.guest.pinger import Pinger
from sandbox.guest.process import GuestProcess
from sandbox.guest.sandbox import GuestSandbox, sandbox_of, twin_spec
from sandbox.owners import new_owner, purge_state, state_dir

START_DEADLINE_S = 10.0


class FakeSandbox(GuestSandbox):
    """A directory and a guest that is not pid 1 of anything."""

    def __init__(self, spec: SandboxSpec, process: GuestProcess, root: Path, backend: FakeBackend) -> None:
        super().__init__(spec, process.client)
        self.root = root
        self._process = process
        self._backend = backend

    async def run(self, command: Command) -> ExecResult:
        """See `Sandbox.run`."""
        here, there = str(self.root), self.spec.workdir
        result = await super().run(replace(command, argv=[word.replace(there, here) for word in command.argv]))
        head, tail = (part.replace(here.encode(), there.encode()) for part in (result.head, result.tail))
        shorter = len(result.head) + len(result.tail) - len(head) - len(tail)
        return replace(result, head=head, tail=tail, total_bytes=result.total_bytes - shorter)

    async def twin(self) -> Sandbox:
        """See `Sandbox.twin`."""
        return await self._backend.create(twin_spec(self.spec))

    async def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""
        return await self._backend.take_snapshot(self)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        await self._process.stop()
        self._backend.forget(self)

    def _absolute(self, path: str) -> str:
        return super()._absolute(path).replace(self.spec.workdir, str(self.root), 1)


class FakeBackend:
    """Makes directories that pass for sandboxes; see `Backend`."""

    name = "fake"

    def __init__(self, run: str) -> None:
        self._owner = new_owner(run)
        self.living: list[FakeSandbox] = []
        self._made = 0
        self._pinger = Pinger(lambda: self.living)

    async def probe(self) -> Capabilities:
        """See `Backend.probe`."""
        limits = dict.fromkeys(("memory", "processes", "cpu", "disk"), "not held: nothing is isolated")
        try:
            guest_binary()
        except ConfigError as error:
            return Capabilities(backend=self.name, available=False, isolation="none", reason=str(error), limits=limits)
        return Capabilities(backend=self.name, available=True, isolation="none", limits=limits)

    async def create(self, spec: SandboxSpec) -> FakeSandbox:
        """See `Backend.create`."""
        if spec.image is not None:
            raise SandboxError("an image needs the docker backend", kind="unsupported")
        root = self._new_path("tree")
        origin = Path(spec.from_snapshot.reference) if spec.from_snapshot is not None else spec.source
        if origin is None:
            root.mkdir()
        else:
            await asyncio.to_thread(shutil.copytree, origin, root, symlinks=True)
        command = [str(guest_binary()), str(max(1, round(spec.ttl_s))), "0", "0"]
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}", "HOME": str(root)}
        process = await GuestProcess.start(command, f"fake sandbox of {spec.lease}", START_DEADLINE_S, env, str(root))
        sandbox = FakeSandbox(spec, process, root, self)
        self.living.append(sandbox)
        self._pinger.start()
        return sandbox

    def expect(self, images: Sequence[str]) -> None:
        """See `Backend.expect`: there are no images here."""

    async def adopt(self, lease: str) -> Sandbox | None:
        """See `Backend.adopt`."""
        return sandbox_of(lease, self.living)

    async def purge(self, run: str) -> int:
        """See `Backend.purge`."""
        return purge_state(run)

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See `Backend.delete_snapshot`."""
        shutil.rmtree(state_dir(self._owner) / Path(snapshot.reference).name, ignore_errors=True)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._pinger.stop()
        await asyncio.gather(*(sandbox.close() for sandbox in list(self.living)))
        shutil.rmtree(state_dir(self._owner), ignore_errors=True)

    async def take_snapshot(self, sandbox: FakeSandbox) -> Snapshot:
        """Copy a sandbox's directory."""
        path = self._new_path("snapshot")
        await asyncio.to_thread(shutil.copytree, sandbox.root, path, symlinks=True)
        return Snapshot(backend=self.name, reference=str(path))

    def forget(self, sandbox: FakeSandbox) -> None:
        """A sandbox has ended: remove its directory."""
        if sandbox in self.living:
            self.living.remove(sandbox)
        shutil.rmtree(sandbox.root, ignore_errors=True)

    def _new_path(self, kind: str) -> Path:
        self._made += 1
        return state_dir(self._owner) / f"{kind}-{self._made}"
