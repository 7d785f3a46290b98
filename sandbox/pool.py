"""Sandboxes started ahead of need: a `Backend` around another, with a stock for every image that is in use.

The members of a group work on the same image, and every episode is followed by its grading on it; so whoever starts one
will want another. What waits in stock is an ordinary sandbox, with the owner's TTL, and closes with its backend.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from msgspec.structs import replace

from protocol.errors import SandboxError
from sandbox.base import Backend, Capabilities, Limits, Sandbox, SandboxSpec, Snapshot
from sandbox.host_room import wait_for_room

T = TypeVar("T")

WARM_LEASE = "warm"
MAX_WARM = 32


class Stock(Generic[T]):
    """What is ready, by kind. Pure: it starts and closes nothing.

    At most `most` are held in all; those of the kind that was not asked for the longest leave first.
    """

    def __init__(self, target: int, most: int) -> None:
        self._target = min(target, most)
        self._most = most
        self._ready: OrderedDict[Hashable, deque[T]] = OrderedDict()  # least recently asked for first
        self._starting: dict[Hashable, int] = {}

    def take(self, kind: Hashable) -> T | None:
        """The one of a kind that is ready the longest."""
        ready = self._ready.setdefault(kind, deque())
        self._ready.move_to_end(kind)
        return ready.popleft() if ready else None

    def num_to_start(self, kind: Hashable) -> int:
        """How many should be started now; they count as being started until `add` or `failed`."""
        has = len(self._ready.get(kind, ())) + self._starting.get(kind, 0)
        number = max(0, self._target - has)
        self._starting[kind] = self._starting.get(kind, 0) + number
        return number

    def add(self, kind: Hashable, item: T) -> list[T]:
        """One that was to be started is ready; those that have to leave for it."""
        self.failed(kind)
        self._ready.setdefault(kind, deque()).append(item)
        leaving = []
        while self.num_ready > self._most:
            oldest = next(kind for kind, ready in self._ready.items() if ready)
            leaving.append(self._ready[oldest].popleft())
        for kind in [kind for kind, ready in self._ready.items() if not ready and kind not in self._starting]:
            del self._ready[kind]
        return leaving

    def failed(self, kind: Hashable) -> None:
        """One that was to be started will not be."""
        self._starting[kind] -= 1
        if not self._starting[kind]:
            del self._starting[kind]

    @property
    def num_ready(self) -> int:
        """How many are ready, of all kinds."""
        return sum(map(len, self._ready.values()))


class Pool:
    """A backend whose next sandbox of an image is there already; see `Backend`.

    Args:
        warm: sandboxes kept ready for each image in use; 0: none.
        make_room: waits until the host has room, or raises `SandboxError`.
    """

    def __init__(
        self, backend: Backend, warm: int, make_room: Callable[[Limits], Awaitable[None]] = wait_for_room
    ) -> None:
        self.name = backend.name
        self._backend = backend
        self._make_room = make_room
        self._stock: Stock[Sandbox] = Stock(warm, MAX_WARM)
        self._starts: set[asyncio.Task[None]] = set()

    @property
    def num_warm(self) -> int:
        """How many wait in stock."""
        return self._stock.num_ready

    async def probe(self) -> Capabilities:
        """See `Backend.probe`."""
        return await self._backend.probe()

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """See `Backend.create`; at once when one is ready."""
        kind = _kind(spec)
        if kind is None:
            await self._make_room(spec.limits)
            return await self._backend.create(spec)
        sandbox = self._stock.take(kind)
        while sandbox is not None and not await _is_alive(sandbox):
            sandbox = self._stock.take(kind)
        for _ in range(self._stock.num_to_start(kind)):
            task = asyncio.create_task(self._start(kind, spec), name="warm-start")
            self._starts.add(task)
            task.add_done_callback(self._starts.discard)
        if sandbox is None:
            await self._make_room(spec.limits)
            return await self._backend.create(spec)
        sandbox.spec = spec
        return sandbox

    def expect(self, images: Sequence[str]) -> None:
        """See `Backend.expect`."""
        self._backend.expect(images)

    async def adopt(self, lease: str) -> Sandbox | None:
        """See `Backend.adopt`."""
        return await self._backend.adopt(lease)

    async def purge(self, run: str) -> int:
        """See `Backend.purge`."""
        return await self._backend.purge(run)

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See `Backend.delete_snapshot`."""
        await self._backend.delete_snapshot(snapshot)

    async def close(self) -> None:
        """See `Backend.close`."""
        for task in list(self._starts):
            task.cancel()
        if self._starts:
            await asyncio.wait(self._starts)
        await self._backend.close()

    async def _start(self, kind: Hashable, spec: SandboxSpec) -> None:
        try:
            await self._make_room(spec.limits)
            sandbox = await self._backend.create(replace(spec, lease=WARM_LEASE))
        except SandboxError:  # whoever needs one will start it, and get this error if it persists
            self._stock.failed(kind)
            return
        except BaseException:
            self._stock.failed(kind)
            raise
        for leaving in self._stock.add(kind, sandbox):
            await leaving.close()


def _kind(spec: SandboxSpec) -> Hashable | None:
    """What a warm sandbox must have in common with a wanted one; None for what is not kept warm (trees and snapshots
    are as many as tasks, and start in milliseconds where there is no image; who keeps one must know its lease)."""
    if spec.image is None or spec.source is not None or spec.from_snapshot is not None or spec.kept:
        return None
    binds = tuple(sorted(spec.read_only_binds.items()))
    limits = (spec.limits.memory_mib, spec.limits.max_processes, spec.limits.cpus, spec.limits.disk_mib)
    return (spec.image, spec.workdir, spec.run, binds, limits, spec.ttl_s, spec.user_paths, spec.places)


async def _is_alive(sandbox: Sandbox) -> bool:
    client = getattr(sandbox, "client", None)
    if client is None or client.alive:
        return True
    await sandbox.close()
    return False
