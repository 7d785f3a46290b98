"""Sandboxes from Linux namespaces: no daemon, no image.

`stage` (guest/stage.c) prepares the mounts and drops privileges, bubblewrap isolates, the guest is pid 1. All that a
sandbox writes lies in a tmpfs of its own mount namespace, so it is bounded and nothing is left when its last process
ends. From the host it sees `/usr` and a few files of `/etc`, read-only, and the Python that runs us.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import ConfigError, SandboxError
from sandbox.base import Capabilities, Sandbox, SandboxSpec, Snapshot
from sandbox.guest.build import guest_binary, stage_binary
from sandbox.guest.pinger import Pinger
from sandbox.guest.process import GuestProcess
from sandbox.guest.sandbox import GuestSandbox, sandbox_of, twin_spec
from sandbox.namespace.cgroups import Cgroups, purge_cgroups
from sandbox.namespace.foreign_packages import Foreign, foreign_packages_here, refuse_visible
from sandbox.namespace.host_view import ALTERNATIVES, GUEST, bubblewrap_command, make_etc, python_home
from sandbox.namespace.snapshots import Layers, force_to_disk, layers_of_snapshot, layers_of_source, write_snapshot
from sandbox.owners import end_keepers, new_owner, purge_state, state_dir

FIRST_HOST_UID = 0x70000000  # past what distributions and other container tools hand out
NUM_HOST_UIDS = 1 << 20
START_DEADLINE_S = 30.0
PROBE_DEADLINE_S = 10.0
GONE_DEADLINE_S = 10.0
GONE_POLL_S = 0.01
MOST_OPEN_FILES = 1 << 16
NO_OVERLAY = ("id-mapped mount", "overlay")  # what stage.c says where a file system does not allow them


class NamespaceSandbox(GuestSandbox):
    """One bubblewrap process with a guest in it."""

    def __init__(
        self, spec: SandboxSpec, process: GuestProcess, name: str, layers: Layers, backend: NamespaceBackend
    ) -> None:
        super().__init__(spec, process.client)
        self.name = name
        self.layers = layers
        self._process = process
        self._backend = backend

    @property
    def pid(self) -> int:
        """Host process id of its monitor."""
        return self._process.pid

    async def pass_on(self, connection: socket.socket) -> None:
        """Let whoever is at the other end of `connection` work here from now on. Raises `SandboxError`."""
        await self._process.pass_on(connection)

    async def twin(self) -> Sandbox:
        """See `Sandbox.twin`."""
        return await self._backend.create(twin_spec(self.spec))

    async def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""
        return await self._backend.take_snapshot(self)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        await self._process.stop()
        await self._backend.forget(self)


class NamespaceBackend:
    """Makes sandboxes on this host; see `Backend`."""

    name = "namespace"

    def __init__(self, run: str, max_starts: int = 4) -> None:
        self.owner = new_owner(run)
        self._starts = asyncio.Semaphore(max_starts)
        self._living: dict[str, NamespaceSandbox] = {}
        self._pinger = Pinger(self._living.values)
        self._capabilities: Capabilities | None = None
        self._cgroups: Cgroups | None = None
        self._state = Path()
        self._foreign = Foreign((), {})
        self._copied_devices: set[int] = set()  # file systems whose trees are copied: an overlay cannot be had

    async def probe(self) -> Capabilities:
        """See `Backend.probe`: starts one sandbox and looks at itself from inside."""
        if self._capabilities is None:
            self._capabilities = await self._probe()
        return self._capabilities

    async def create(self, spec: SandboxSpec) -> NamespaceSandbox:
        """See `Backend.create`."""
        capabilities = await self.probe()
        if not capabilities.available:
            raise SandboxError(f"no namespace sandbox on this host: {capabilities.reason}", kind="unavailable")
        return await self._create(spec)

    def expect(self, images: Sequence[str]) -> None:
        """See `Backend.expect`: there are no images here."""

    async def adopt(self, lease: str) -> Sandbox | None:
        """See `Backend.adopt`."""
        return sandbox_of(lease, self._living.values())

    async def purge(self, run: str) -> int:
        """See `Backend.purge`."""
        return await asyncio.to_thread(purge_namespaces, run)

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See `Backend.delete_snapshot`."""
        await asyncio.to_thread(shutil.rmtree, self._snapshot_path(snapshot), True)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._pinger.stop()
        await asyncio.gather(*(sandbox.close() for sandbox in list(self._living.values())))
        if self._cgroups is not None:
            self._cgroups.close()
        shutil.rmtree(state_dir(self.owner), ignore_errors=True)

    async def forget(self, sandbox: NamespaceSandbox) -> None:
        """A sandbox has ended: remove what the kernel does not."""
        self._living.pop(sandbox.name, None)
        assert self._cgroups is not None
        for _ in range(round(GONE_DEADLINE_S / GONE_POLL_S)):
            if self._cgroups.remove(sandbox.name):
                return
            await asyncio.sleep(GONE_POLL_S)
        raise SandboxError(f"processes of sandbox {sandbox.name} outlived it by {GONE_DEADLINE_S:g} s", kind="undead")

    async def take_snapshot(self, sandbox: NamespaceSandbox) -> Snapshot:
        """Copy what a sandbox has written. Commands should not run meanwhile."""
        path = (sandbox.spec.snapshots or self._snapshots()) / secrets.token_hex(8)
        root = Path(f"/proc/{sandbox.pid}/root/tmp")
        async with sandbox.client.stopped():
            await asyncio.to_thread(write_snapshot, path, root, sandbox.layers)
        if sandbox.spec.snapshots is None:
            return Snapshot(backend=self.name, reference=path.name)
        await asyncio.to_thread(force_to_disk, path)  # it is to outlive this machine's memory
        return Snapshot(backend=self.name, reference=str(path))

    # -- below: probing

    async def _probe(self) -> Capabilities:
        try:
            self._prepare()
            self._foreign = await asyncio.to_thread(foreign_packages_here, python_home())
        except (ConfigError, OSError) as error:
            return _unavailable(str(error))
        try:
            async with await self._create(
                SandboxSpec(run=self.owner.run, lease="probe", source=self._etc())
            ) as sandbox:
                return await self._examine(sandbox)
        except SandboxError as error:
            return _unavailable(str(error))

    def _prepare(self) -> None:
        """Make what all sandboxes share."""
        for program, package in (("bwrap", "bubblewrap"), ("bash", "bash"), ("git", "git")):
            if shutil.which(program) is None:
                raise ConfigError(f"{program} is missing; type: apt-get install {package}", kind="missing_program")
        guest_binary(), stage_binary()
        allow_open_files()
        self._cgroups = Cgroups(self.owner)
        self._state = state_dir(self.owner)
        make_etc(self._etc())
        self._empty().mkdir(mode=0o755, exist_ok=True)

    async def _examine(self, sandbox: NamespaceSandbox) -> Capabilities:
        seen = await sandbox.exec("grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status", timeout=PROBE_DEADLINE_S)
        words = seen.text.split()
        expected = {"CapEff:": "0000000000000000", "NoNewPrivs:": "1", "Seccomp:": "2"}
        for word, value in expected.items():
            if word not in words or words[words.index(word) + 1] != value:
                return _unavailable(f"expected {word} {value} inside a sandbox, got {seen.text!r}")
        if os.stat(f"/proc/{sandbox.pid}").st_uid == 0:  # noqa: PTH116
            return _unavailable("the sandbox's user would be the host's root")
        assert self._cgroups is not None
        cgroups, why = self._cgroups.available, self._cgroups.missing
        limits = {
            "memory": "control group" if cgroups else f"watchdog of the guest ({why})",
            "processes": "control group" if cgroups else f"RLIMIT_NPROC of its user namespace ({why})",
            "cpu": "control group" if cgroups else f"not held: {why}",
            "disk": "size of its tmpfs",
            "files": "a copy of the source tree" if self._copied_devices else "an overlay over the source tree",
        }
        return Capabilities(backend=self.name, available=True, isolation="namespace", limits=limits)

    # -- below: starting

    async def _create(self, spec: SandboxSpec) -> NamespaceSandbox:
        if spec.image is not None:
            raise SandboxError("an image needs the docker backend, this one shows directories", kind="unsupported")
        if not self._etc().is_dir():  # a purge of this run may have removed it
            self._state = state_dir(self.owner)
            make_etc(self._etc())
            self._empty().mkdir(mode=0o755, exist_ok=True)
        binds = [Path(path) for path in spec.read_only_binds]
        refuse_visible(spec.absent_packages, binds, self._foreign.visible, spec.lease)
        layers = layers_of_source(spec.source)
        if spec.from_snapshot is not None:
            layers = layers_of_snapshot(self._snapshot_path(spec.from_snapshot))
        try:
            return await self._start(spec, layers)
        except SandboxError as error:
            if self._must_copy(layers) or not any(f"stage: {what}" in str(error) for what in NO_OVERLAY):
                raise
        self._copied_devices |= {lower.stat().st_dev for lower in layers.lowers}
        return await self._start(spec, layers)

    async def _start(self, spec: SandboxSpec, layers: Layers) -> NamespaceSandbox:
        name = secrets.token_hex(6)
        async with self._starts:
            assert self._cgroups is not None
            try:
                joins = self._cgroups.create(name, spec.limits) if self._cgroups.available else []
            except OSError as error:
                raise SandboxError(f"cannot limit a sandbox: {error}", kind="cgroup") from error
            command = [
                *self._stage(spec, layers, joins),
                *bubblewrap_command(spec, self._foreign.hidden),
                *self._guest(spec),
            ]
            try:
                process = await GuestProcess.start(command, f"sandbox {name} of {spec.lease}", START_DEADLINE_S, {})
            except BaseException:
                self._cgroups.remove(name)
                raise
        kept = Layers() if self._must_copy(layers) else layers
        sandbox = NamespaceSandbox(spec, process, name, kept, self)
        self._living[name] = sandbox
        self._pinger.start()
        return sandbox

    def _stage(self, spec: SandboxSpec, layers: Layers, joins: list[Path]) -> list[str]:
        command = [str(stage_binary()), "-s", str(spec.limits.disk_mib)]
        command += ["-u", str(FIRST_HOST_UID + secrets.randbelow(NUM_HOST_UIDS))]
        for file in joins:
            command += ["-g", str(file)]
        copies = self._must_copy(layers)
        if copies and len(layers.lowers) > 1:
            raise SandboxError("a snapshot of several layers needs overlays, which this host lacks", kind="snapshot")
        for lower in layers.lowers:
            command += ["-c" if copies else "-l", str(lower)]
        if layers.rest is not None:
            command += ["-h", str(layers.rest)]
        binds = {"etc": self._etc(), "guest": guest_binary(), "empty": self._empty()}
        if (python := python_home()) is not None:
            binds["python"] = python
        if ALTERNATIVES.is_dir():
            binds["alternatives"] = ALTERNATIVES
        binds |= {f"bind{i}": Path(path) for i, path in enumerate(spec.read_only_binds)}
        for bind, path in binds.items():
            command += ["-b", f"{path}={bind}"]
        return [*command, "--"]

    def _must_copy(self, layers: Layers) -> bool:
        """Where a file system allows no overlay, or another user's files could not be written to through one (to root
        they are shown as the sandbox's own)."""
        stats = [lower.stat() for lower in layers.lowers]
        return any(stat.st_dev in self._copied_devices or os.geteuid() not in (0, stat.st_uid) for stat in stats)

    def _guest(self, spec: SandboxSpec) -> list[str]:
        assert self._cgroups is not None
        ttl = max(1, round(spec.ttl_s))
        if self._cgroups.available:
            return [GUEST, str(ttl), "0", "0"]
        return [GUEST, str(ttl), str(spec.limits.max_processes), str(spec.limits.memory_mib)]

    def _etc(self) -> Path:
        return self._state / "etc"

    def _empty(self) -> Path:
        return self._state / "empty"

    def _snapshots(self) -> Path:
        return state_dir(self.owner) / "snapshots"

    def _snapshot_path(self, snapshot: Snapshot) -> Path:
        path = Path(snapshot.reference)
        return path if path.is_absolute() else self._snapshots() / path.name


def purge_namespaces(run: str) -> int:
    """See `Backend.purge`. Blocking."""
    keepers = end_keepers(run) if run else 0
    return keepers + purge_cgroups(run) + purge_state(run)


def allow_open_files() -> None:
    """Every sandbox takes two files of its owner; the usual soft limit of 1024 would end at 500 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MOST_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _unavailable(reason: str) -> Capabilities:
    return Capabilities(backend="namespace", available=False, isolation="none", reason=reason)
