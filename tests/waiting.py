"""Waiting for what others do in their own time, however long a busy host takes to get there."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

import psutil

LONG_S = 60.0
"""A deadline that only what never happens reaches."""


async def until(condition: Callable[[], object], timeout_s: float = LONG_S) -> None:
    """Until `condition` holds, while this loop goes on; what it gives is awaited first where that can be.

    Raises `TimeoutError`.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            met = condition()
            if await met if inspect.isawaitable(met) else met:
                return
            await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object], timeout_s: float = LONG_S) -> None:
    """Until `condition` holds, in a thread of its own or where there is no loop. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.01)


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended, waited for or not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two
        return False


def sleepers(marker: str) -> list[psutil.Process]:
    """Processes on this host that sleep for `marker` seconds, a number that a test has drawn."""
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", marker]]
