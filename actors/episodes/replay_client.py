"""The sandbox actor's side of the replay buffer: asks, retries, and tells nothing twice as new.

A message that found no answer is sent again, after a growing pause with jitter, until its own deadline. The buffer
knows duplicates by lease and episode id, so a repeated submission is harmless. ZMQ itself reconnects to a restarted
server.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TypeVar

from protocol.errors import DeadlineError, LonghaulError, WireError
from protocol.messages import (
    Fail,
    FailReply,
    Heartbeat,
    HeartbeatReply,
    LeaseReply,
    LeaseRequest,
    Message,
    Submit,
    SubmitReply,
    SubmitStatus,
    Trajectory,
)
from protocol.sockets import Client, Keys

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class ReplayClient:
    """One actor's connection. Every method raises `WireError` when the buffer refuses.

    Args:
        request_timeout_s: how long one request waits for its answer.
        delivery_s: deadline of getting one result acknowledged, all repetitions together.
    """

    def __init__(
        self, endpoint: str, actor: str, keys: Keys | None, *, request_timeout_s: float, delivery_s: float = 600.0
    ) -> None:
        self._client = Client(endpoint, keys)
        self._actor = actor
        self._request_timeout_s = request_timeout_s
        self._delivery_s = delivery_s

    async def lease(self, capacity: int) -> LeaseReply:
        """Ask once for up to `capacity` episodes. Raises `DeadlineError`."""
        request = LeaseRequest(actor=self._actor, capacity=capacity)
        return _expect(LeaseReply, await self._client.request(request, self._request_timeout_s))

    async def heartbeat(self, lease_ids: list[str]) -> list[str]:
        """Extend leases; those that the actor holds no longer. Raises `DeadlineError`."""
        request = Heartbeat(actor=self._actor, lease_ids=lease_ids)
        return _expect(HeartbeatReply, await self._client.request(request, self._request_timeout_s)).unknown

    async def submit(self, trajectory: Trajectory) -> SubmitStatus:
        """Deliver a trajectory: what the buffer made of it. Raises `DeadlineError` when it stays unreachable."""
        message = Submit(actor=self._actor, trajectory=trajectory)
        return _expect(SubmitReply, await self._deliver(message)).status

    async def fail(self, lease_id: str, error: LonghaulError) -> None:
        """Report that an episode could not be run through. Raises `DeadlineError` when the buffer stays unreachable."""
        message = Fail(actor=self._actor, lease_id=lease_id, kind=error.label, reason=str(error)[:2000])
        _expect(FailReply, await self._deliver(message))

    async def close(self) -> None:
        """Drop the connection."""
        await self._client.close()

    async def _deliver(self, message: Message) -> Message:
        deadline = time.monotonic() + self._delivery_s
        pauses = Backoff()
        while True:
            try:
                return await self._client.request(message, self._request_timeout_s)
            except DeadlineError as error:
                if time.monotonic() >= deadline:
                    raise
                log.warning("%s; sending it again", error)
            await asyncio.sleep(pauses.next())


class Backoff:
    """Growing pauses, each drawn between half and one and a half of its length, so that actors do not march in step."""

    def __init__(self, first_s: float = _FIRST_PAUSE_S, longest_s: float = _LONGEST_PAUSE_S) -> None:
        self._first_s = self._next_s = first_s
        self._longest_s = longest_s

    def next(self) -> float:
        """Seconds to wait now."""
        pause = jittered(self._next_s)
        self._next_s = min(2 * self._next_s, self._longest_s)
        return pause

    def reset(self) -> None:
        """It worked: the next pause is the first again."""
        self._next_s = self._first_s


def jittered(seconds: float) -> float:
    """Between half and one and a half of `seconds`."""
    return seconds * random.uniform(0.5, 1.5)


def _expect(kind: type[M], reply: Message) -> M:
    if not isinstance(reply, kind):
        raise WireError(f"expected {kind.__name__}, got {type(reply).__name__}", kind="unexpected")
    return reply
