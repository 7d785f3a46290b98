"""Judging right solutions while nine of ten sandboxes break: whatever has no verdict must not look like a failure."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import cast

from protocol.errors import LonghaulError, SandboxError
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.curation.gold import gold_patch
from sandbox.judgement.grading import grade
from sandbox.tasks.micro import make_tasks

SHARE_BROKEN = 0.9
_MOST_AT_ONCE = 4
_NUM_TASKS = 4


class BrokenBackend:
    """Hands out sandboxes of another backend; of ten, four do not start and five die while they are used."""

    def __init__(self, inner: Backend, r: random.Random, deaths_within_s: float = 0.08) -> None:
        self.name = inner.name
        self._inner, self._random, self._deaths_within_s = inner, r, deaths_within_s
        self._deaths: set[asyncio.Task[None]] = set()

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """A sandbox, or one that is about to die. Raises `SandboxError` where it does not start."""
        fate = self._random.random()
        if fate < 0.4:
            raise SandboxError("this sandbox did not start (on purpose)", kind="start")
        sandbox = await self._inner.create(spec)
        if fate < SHARE_BROKEN:
            death = asyncio.create_task(self._end(sandbox, self._random.uniform(0, self._deaths_within_s)))
            self._deaths.add(death)
            death.add_done_callback(self._deaths.discard)
        return sandbox

    async def _end(self, sandbox: Sandbox, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await sandbox.close()


async def zeros_under_outage(backend: Backend, num: int, cache_dir: Path, r: random.Random) -> dict[str, int]:
    """Judge `num` right solutions in a broken place: how many got a verdict of 0 (`zeros`), a 1 (`right`), or none at
    all (`broken`), which is what a lost sandbox must give."""
    tasks = make_tasks(_NUM_TASKS, 0, 0, "train")
    patches = [await gold_patch(backend, task, "data-outage", Limits(), cache_dir) for task in tasks]
    broken = BrokenBackend(backend, r)
    counts = {"zeros": 0, "right": 0, "broken": 0}
    room = asyncio.Semaphore(_MOST_AT_ONCE)

    async def one(number: int) -> None:
        async with room:
            try:
                verdict = await grade(
                    cast(Backend, broken),
                    tasks[number % _NUM_TASKS],
                    patches[number % _NUM_TASKS],
                    run="data-outage",
                    lease=f"outage-{number}",
                    limits=Limits(),
                    cache_dir=cache_dir,
                    timeout_s=60.0,
                )
            except LonghaulError:
                counts["broken"] += 1
                return
            counts["right" if verdict.resolved else "zeros"] += 1

    await asyncio.gather(*map(one, range(num)))
    return counts
