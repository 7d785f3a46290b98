"""Tells guests that their owner is alive: a guest that hears nothing for its TTL ends its sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from sandbox.guest.sandbox import GuestSandbox
from sandbox.upkeep import Upkeep

SHARE = 1 / 3  # of the shortest TTL, between two words
SHORTEST_S = 0.2


class Pinger(Upkeep):
    """One task for all sandboxes of a backend."""

    name = "sandbox-pinger"

    def __init__(self, living: Callable[[], Collection[GuestSandbox]]) -> None:
        super().__init__()
        self._living = living

    async def _run(self) -> None:
        """Waits for a share of the shortest TTL; unblocked by time, ended by `stop`."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(SHORTEST_S)
            shortest = min((sandbox.spec.ttl_s for sandbox in self._living()), default=60.0)
            if loop.time() - last >= shortest * SHARE:
                last = loop.time()
                for sandbox in self._living():
                    sandbox.client.touch()
