"""Equal changes to one task are judged once: members of a group often make the same one."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from sandbox.judgement.grading import Verdict
from sandbox.patches import Patch
from sandbox.tasks.task import Task

_MOST = 4096


class Judgements:
    """Judgements of one sandbox actor, the newest `_MOST` of them.

    Attributes:
        num_shared: judgements that were not made again.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, asyncio.Future[Verdict]] = OrderedDict()
        self.num_shared = 0

    async def of(self, task: Task, patch: Patch, judge: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """What `judge` said of this change, or says now; of a task with flaky tests it is always asked.

        Waits for a judgement of the same change that is being made; if that fails, or says no more than that time ran
        out, makes its own.
        """
        if task.flaky:
            return await judge()
        key = _key(task, patch)
        while (known := self._known.get(key)) is not None:
            verdict = await _outcome(known)
            if verdict is not None:
                self.num_shared += 1
                return verdict
        known = self._known[key] = asyncio.get_running_loop().create_future()
        try:
            verdict = await judge()
        except BaseException:
            del self._known[key]
            known.cancel()
            raise
        if "did not end in time" in verdict.reason:  # of a busy moment: the next one is judged anew
            del self._known[key]
            known.cancel()
            return verdict
        known.set_result(verdict)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return verdict


async def _outcome(known: asyncio.Future[Verdict]) -> Verdict | None:
    """None if the judgement failed."""
    await asyncio.wait([known])
    return None if known.cancelled() else known.result()


def _key(task: Task, patch: Patch) -> bytes:
    changes = sorted(patch.changes, key=lambda change: change.path)
    return hashlib.sha256(msgspec.msgpack.encode((task.task_id, changes))).digest()
