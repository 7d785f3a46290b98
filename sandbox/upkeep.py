"""What a backend does for all its living sandboxes from time to time: one task, begun with the first of them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod


class Upkeep(ABC):
    """A task that runs from `start` to `stop`; `name` is the task's."""

    name: str

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, if it has not."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    @abstractmethod
    async def _run(self) -> None:
        """Works for ever; `stop` cancels it."""
