"""Waiting for several processes at once, never for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

from protocol.errors import DeadlineError


@contextlib.asynccontextmanager
async def deadline(seconds: float, waiting_for: Callable[[], str]) -> AsyncIterator[None]:
    """Raises a `DeadlineError` that says what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeadlineError(f"waited {seconds:g} s for {waiting_for()}", kind="start") from error


async def within(seconds: float, *work: Coroutine[Any, Any, Any]) -> None:
    """Do `work`, side by side, for as long as there is time; what is not done by then is given up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*work)


async def all_of(
    work: Iterable[Coroutine[Any, Any, Any]], besides: Iterable[Coroutine[Any, Any, Any]] = ()
) -> list[Any]:
    """Results of `work` in order; `besides` runs along. The first error cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
            for one in besides:
                group.create_task(one)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
