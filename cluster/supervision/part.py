"""One process of a run as the supervisor sees it, and what is said when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from protocol.errors import LonghaulError
from protocol.metrics import Values

_ASK_AGAIN_S = 1.0


class PartFailed(LonghaulError, boundary="part"):
    """A process of the run failed; the message holds its name, its own error and the end of its log."""


class LifeLost(PartFailed):
    """This life of the run cannot go on; nothing is wrong with what it computed."""


class LearnerLost(LifeLost):
    """A learner rank died or hung."""


class Part:
    """One process: how to make it, its current Ray handle, and the task that waits for it to end."""

    def __init__(
        self, name: str, role: str, place: Callable[[str], Any], start: Callable[[Any], Awaitable[Any]]
    ) -> None:
        self.name, self.role = name, role
        self._place, self._start = place, start
        self.num_restarts = 0
        self.trouble = ""  # for which it was killed, in words
        self.status: Values = {}
        self.answered_at = time.monotonic()
        self.ending: asyncio.Task[None] | None = None
        self.handle: Any = place(name)

    async def start(self) -> Any:
        """Wait until the process is ready for work; what its `start` returns."""
        result = await self._start(self.handle)
        self.answered_at = time.monotonic()
        return result

    def run(self) -> None:
        """Let it work; `ending` finishes when it ends."""
        self.ending = asyncio.create_task(_until_ended(self.handle), name=self.name)

    def give_up(self, error: LonghaulError) -> None:
        """Nothing of it lives any more, though nobody said so: its host is gone."""
        if self.ending is not None:
            self.ending.cancel()
        self.ending = asyncio.create_task(_failed(error), name=self.name)

    @property
    def failed(self) -> bool:
        """Whether its work ended with an error."""
        return self.error is not None

    @property
    def error(self) -> BaseException | None:
        """What its work ended with, if that was an error."""
        return self.ending.exception() if self.ending is not None and self.ending.done() else None

    def why(self, error: BaseException) -> str:
        """The error with which it ended in one line; of one that was killed, why."""
        return f"it was stuck ({self.trouble})" if self.trouble else error_line(error)

    @property
    def can_answer(self) -> bool:
        """Whether its process is there: at work, or done with it and not yet stopped."""
        return self.ending is not None and not self.failed

    async def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        assert self.ending is not None
        with contextlib.suppress(Exception):  # it may die meanwhile: gone is what was wanted
            await self.handle.stop.remote()
            await asyncio.wait({self.ending})

    def replace(self) -> None:
        """A fresh process in the place of one that died."""
        self.num_restarts += 1
        self.trouble = ""
        # Ray frees a dead actor's name only in its own time
        self.handle = self._place(f"{self.name}.{self.num_restarts}")


async def _until_ended(handle: Any) -> None:
    """Unreachable is not dead: ask again, for as long as Ray does not say that it died."""
    from ray.exceptions import ActorUnavailableError

    call = handle.run
    while True:
        try:
            await call.remote()
        except ActorUnavailableError:
            await asyncio.sleep(_ASK_AGAIN_S)
            call = handle.join
        else:
            return


async def _failed(error: LonghaulError) -> None:
    raise error


def error_line(error: BaseException) -> str:
    """The error of a process in one line, without Ray's wrapping."""
    cause = cause_of(error)
    first = str(cause).strip().splitlines()[0] if str(cause).strip() else ""
    return first if isinstance(cause, LonghaulError) else f"{type(cause).__name__}: {first}"


def cause_of(error: BaseException) -> BaseException:
    """The error of a process itself, out of Ray's wrapping."""
    return getattr(error, "cause", None) or error
