"""What a sandbox is: one interface, implemented by Docker, namespaces and the shipped fake."""

from __future__ import annotations

import secrets
import socket
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from msgspec import Struct

from protocol.errors import SandboxError
from sandbox.listings import Listing
from sandbox.patches import Change

_MAX_ARGUMENT_BYTES = 64 << 10
"""Of a script that is an argument; Linux takes none of 128 KiB."""
_OF_FILES = frozenset(
    ("missing", "too_large", "not_a_file", "read_only", "disk_full", "too_many_processes", "out_of_memory", "busy")
)
"""Kinds of errors in writing that whoever works in a sandbox brings about, and that are no fault of the place."""


class ExecResult(Struct, frozen=True, kw_only=True):
    """What one command did. `head + tail` is the output (stdout and stderr interleaved), cut in the middle."""

    exit_code: int  # negative: killed by that signal
    head: bytes
    tail: bytes
    total_bytes: int
    timed_out: bool
    duration_s: float
    cpu_s: float = 0.0  # of its processes; like the next one known from 2 s on, and not without a guest
    waited_s: float = 0.0  # that some process of it was ready to run while others ran

    @property
    def truncated(self) -> bool:
        """Whether output was left out between head and tail."""
        return self.total_bytes > len(self.head) + len(self.tail)

    @property
    def text(self) -> str:
        """The output as text; what is not UTF-8 is replaced, what was cut is named."""
        head, tail = self.head.decode(errors="replace"), self.tail.decode(errors="replace")
        if not self.truncated:
            return head + tail
        left_out = self.total_bytes - len(self.head) - len(self.tail)
        return f"{head}\n[... {left_out} bytes left out ...]\n{tail}"


def cannot_run(reason: str) -> ExecResult:
    """What a shell would say to a command that cannot be started."""
    text = f"cannot run: {reason}\n".encode(errors="replace")
    return ExecResult(exit_code=126, head=text, tail=b"", total_bytes=len(text), timed_out=False, duration_s=0.0)


def _script_of(command: str) -> bytes:
    """As bash reads it; empty for half a character that stands for no byte, which no program is started with either."""
    try:
        return command.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return b""


class Limits(Struct, frozen=True, kw_only=True):
    """Limits of one sandbox."""

    memory_mib: int = 512
    max_processes: int = 128
    cpus: float = 1.0
    disk_mib: int = 256


class Snapshot(Struct, frozen=True, kw_only=True):
    """The file system of a sandbox at one moment. `reference` means something to the backend that made it only."""

    backend: str
    reference: str


class SandboxSpec(Struct, frozen=True, kw_only=True):
    """What to start. Exactly one of `image` and `source` says where the files come from (both empty: an empty tree)."""

    run: str
    lease: str
    image: str | None = None  # Docker image
    source: Path | None = None  # directory whose content appears, writable, at `workdir`; itself never changed
    workdir: str = "/testbed"
    absent_packages: tuple[str, ...] = ()  # import names of which nothing may be in sight but what the tree holds
    read_only_binds: dict[str, str] = {}  # host path -> path inside, for what tests need and the task does not hold
    user_paths: tuple[str, ...] | None = None  # handed over to a user without root, with `workdir`; None: there is none
    places: tuple[str, ...] = ()  # directories that have to be there besides; whoever makes them may write to them
    limits: Limits = Limits()
    ttl_s: float = 60.0  # dies when its owner has been silent for so long
    from_snapshot: Snapshot | None = None
    snapshots: Path | None = None  # directory in which its snapshots outlive the backend; None: they go with it
    kept: bool = False  # where a keeper holds it (`sandbox/keeper/`): outlives the process that asked for it


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a backend can promise on this host. `limits` maps each limit to how it is held, or to why it is not."""

    backend: str
    available: bool
    isolation: str  # "container", "namespace", "none"
    reason: str = ""  # why it is not available
    limits: dict[str, str] = {}


class Command(Struct, frozen=True, kw_only=True):
    """What a sandbox is to run; see `Sandbox.exec`."""

    argv: list[str]
    timeout: float
    cwd: str = ""  # relative to the work directory, or absolute
    env: Mapping[str, str] | None = None
    max_output: int = 1 << 16
    lasts: bool = False  # where the sandbox is kept, it outlives whoever waits for it; see `Sandbox.rejoin`


class Sandbox(Protocol):
    """An isolated machine-like place. Every method raises `SandboxError` when the place, not the command, fails.

    Implementations are made from it, and say how a command runs, not what one is.
    """

    spec: SandboxSpec

    async def exec(
        self,
        cmd: str | list[str],
        timeout: float,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        max_output: int = 1 << 16,
    ) -> ExecResult:
        """Run a command (a string of any length goes to bash). On the deadline it and every descendant is killed.

        Args:
            timeout: seconds.
            cwd: working directory, default `spec.workdir`.
            max_output: bytes of output kept, half of them head and half tail.
        """
        argv = ["bash", "-c", cmd] if isinstance(cmd, str) else cmd
        if not argv or timeout <= 0:
            raise ValueError(f"a command needs words and a positive timeout, got {argv!r} and {timeout}")
        if isinstance(cmd, str) and len(script := _script_of(cmd)) >= _MAX_ARGUMENT_BYTES:
            place = f"/tmp/.{secrets.token_hex(8)}.sh"
            try:
                await self.write(place, b'rm -f -- "$0"\n' + script)
            except SandboxError as error:
                if error.kind not in _OF_FILES:
                    raise
                return cannot_run(str(error))
            argv = ["bash", place]
        return await self.run(Command(argv=argv, timeout=timeout, cwd=cwd or "", env=env, max_output=max_output))

    @abstractmethod
    async def run(self, command: Command) -> ExecResult:
        """`exec`, of a command that is known to be one."""
        ...

    async def rejoin(self, timeout: float) -> ExecResult | None:
        """The result of the one command of this sandbox that lasts, whoever started it; None: nobody did.

        Args:
            timeout: seconds within which it ends; its own deadline stays what it was.
        """
        return None

    @abstractmethod
    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file; parents are made. Relative to `spec.workdir`. A link of that name is replaced, not followed.

        Raises `SandboxError` (kinds among others: disk_full, read_only, not_a_file, bad_path, too_large).
        """
        ...

    @abstractmethod
    async def read(self, path: str, max_bytes: int = 1 << 24) -> bytes:
        """A regular file's content; never that of a device, a pipe or `/proc`.

        Raises `SandboxError` (kinds: missing, too_large, not_a_file, which is also what may not be read, bad_path).
        """
        ...

    async def listen(self, accept: Callable[[socket.socket, int], Awaitable[None]]) -> int:
        """Listen on a free port of the sandbox's own loopback; the port, which stays the same.

        Every connection from inside is handed to `accept` as a socket of this process, with its number: nothing else
        becomes reachable. Whoever listens last has all of them, those that were begun before, too, under their numbers
        and from their beginning; of what he answers over one, what it was told before is left out.
        Where a sandbox carries none: `SandboxError` (kind: unsupported).
        """
        raise SandboxError(f"{type(self).__name__} carries no connections out of it", kind="unsupported")

    async def list_tree(self) -> Listing:
        """What `spec.workdir` holds, found without running a program of the sandbox and without following a link."""
        raise SandboxError(f"{type(self).__name__} shows no trees", kind="unsupported")

    async def fetch(self, path: str, max_bytes: int) -> Change:
        """One file or link below `spec.workdir`, reached through no link.

        Raises `SandboxError` (kinds as of `read`).
        """
        raise SandboxError(f"{type(self).__name__} shows no trees", kind="unsupported")

    async def place(self, change: Change) -> None:
        """Bring one path below `spec.workdir` into a state, through no link; whatever has the name is replaced.

        Parents are made; with the last file of a directory the directory goes. Raises `SandboxError` (kinds among
        others: blocked, where a link or a file stands in the way; disk_full).
        """
        raise SandboxError(f"{type(self).__name__} shows no trees", kind="unsupported")

    async def hand_over(self) -> None:
        """From now on whoever uses this sandbox is a user without root, if its spec says so (`user_paths`).

        Where nobody in it ever has root there is nothing to do. Raises `SandboxError` (kind: user).
        """
        return

    async def seal(self, paths: list[str]) -> None:
        """Make paths read-only from outside, for root in it, too; those that are not there are left out.

        Where that cannot be had nothing happens. Raises `SandboxError` (kind: seal).
        """
        return

    async def image_id(self) -> str:
        """What its image is by content, where the backend knows more than the name, which may come to mean another.

        Raises `SandboxError`.
        """
        return self.spec.image or ""

    async def twin(self) -> Sandbox:
        """Another sandbox started as this one was. Raises `SandboxError`."""
        raise SandboxError(f"{type(self).__name__} shows no trees", kind="unsupported")

    @abstractmethod
    async def kill_all(self) -> None:
        """Kill everything in the sandbox except its command server."""
        ...

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """The file system as it is now, to branch from."""
        ...

    @abstractmethod
    async def close(self) -> None:
        """Destroy the sandbox and all it holds. May be called twice."""
        ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Backend(Protocol):
    """Makes sandboxes of one kind."""

    name: str

    async def probe(self) -> Capabilities:
        """What this host allows. Fails closed: isolation that cannot be shown is not available."""
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox that is ready for commands. Raises `SandboxError`."""
        ...

    def expect(self, images: Sequence[str]) -> None:
        """Sandboxes of these images will be wanted soon, the first one first: what can be made ready for them is,
        beside what is wanted now. In place of what was said before; nothing is promised, and nothing raised."""
        ...

    async def adopt(self, lease: str) -> Sandbox | None:
        """The living sandbox of a lease, for whoever takes the lease over; None when there is none. Where a keeper
        holds it, another process may have made it, to be `kept`; else it has not outlived the one that did."""
        ...

    async def purge(self, run: str) -> int:
        """Remove all that is left of a run (or, with an empty name, of dead owners); how many things were removed."""
        ...

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Forget a snapshot and its files."""
        ...

    async def close(self) -> None:
        """Close every sandbox made here and the backend's own resources."""
        ...
