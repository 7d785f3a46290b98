"""Results of a long benchmark, kept as they come: a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from sandbox.curation.validate import whole_lines

T = TypeVar("T")

_SAY_EVERY_S = 10.0


class Results:
    """JSON values by key, in a JSONL file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._known: dict[str, object] = {}
        for line in whole_lines(path):
            key, value = json.loads(line)
            self._known[key] = value

    async def once(self, key: str, measure: Callable[[], Awaitable[T]]) -> T:
        """What `measure` gave under this key, in this run or in one before it."""
        if key not in self._known:
            value = await measure()
            with self._path.open("a") as file:
                file.write(json.dumps([key, value]) + "\n")
            self._known[key] = value
        return self._known[key]  # type: ignore[return-value]


async def side_by_side(what: str, num_jobs: int, jobs: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run all jobs, so many at a time, saying now and then how far it is. Results in the jobs' order."""
    room = asyncio.Semaphore(num_jobs)
    done = Progress(what, len(jobs))

    async def one(job: Callable[[], Awaitable[T]]) -> T:
        async with room:
            result = await job()
        done.advance()
        return result

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(one(job)) for job in jobs]
    return [task.result() for task in running]


class Progress:
    """A line every ten seconds: how much of how many, after how long."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._count = what, total, 0
        self._began = self._said = time.monotonic()

    def advance(self) -> None:
        """One more is done."""
        self._count += 1
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY_S or self._count == self._total:
            self._said = now
            print(f"{self._what}: {self._count} of {self._total} after {now - self._began:.0f} s", flush=True)


def digest_of(files: Iterable[Path]) -> str:
    """Short digest of source files: results of other code do not count."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]
