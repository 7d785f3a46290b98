"""Waiting for what others do in their own time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

import psutil

DEADLINE_S = 60.0


async def until(condition: Callable[[], object]) -> None:
    """Until a condition holds, asked again and again; what it gives is awaited first where that can be."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            met = condition()
            if await met if inspect.isawaitable(met) else met:
                return
            await asyncio.sleep(0.02)


def sleepers(marker: str) -> list[psutil.Process]:
    """Processes on this host that sleep for `marker` seconds, a number that a test has drawn."""
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", marker]]
