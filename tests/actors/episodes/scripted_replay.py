"""A small replay server for tests of the sandbox actor: real sockets, a list of leases, a record of what came."""

from __future__ import annotations

import asyncio
import time

from protocol.messages import (
    Fail,
    FailReply,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeaseReply,
    LeaseRequest,
    Message,
    Sampling,
    Submit,
    SubmitReply,
    Trajectory,
)
from protocol.sockets import Server


def make_lease(
    number: int, task_id: str, *, version: int = 0, max_turns: int = 8, attempt: int = 0, evaluates: int = -1
) -> Lease:
    """A lease of member `number` of one group."""
    return Lease(
        lease_id=f"lease-{number}-{attempt}",
        episode_id=f"group/{number}",
        task_id=task_id,
        group_id="group",
        member=number,
        attempt=attempt,
        version=version,
        deadline_at=time.time() + 60,
        sampling=Sampling(max_tokens=400),
        max_turns=max_turns,
        max_context=3000,
        evaluates=evaluates,
    )


class ScriptedReplay:
    """Gives its leases in order, then nothing until all are answered, then `done`.

    One that the actor has said nothing of is given again before any other: the answer may have come too late.
    """

    def __init__(self, endpoint: str, leases: list[Lease], *, at_once: int = 1000) -> None:
        self._endpoint = endpoint
        self._waiting = list(leases)
        self._at_once = at_once
        self._open: dict[str, Lease] = {}
        self._heard_of: set[str] = set()
        self._loop: asyncio.Task[None] | None = None
        self.trajectories: list[Trajectory] = []
        self.num_submissions = 0
        self.failures: list[Fail] = []
        self.heartbeats: list[list[str]] = []
        self.unknown: set[str] = set()
        self.num_ignored_submissions = 0
        self.num_lost_answers = 0
        self.late: set[str] = set()
        self.capacities: list[int] = []
        self.most_open = 0

    def start(self) -> None:
        """Listen."""
        self._server = Server(self._endpoint)
        self._loop = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Be gone, as a killed server is."""
        assert self._loop is not None
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        self._server.close()

    async def _serve(self) -> None:
        async for peer, message in self._server:
            if (reply := self._answer(message)) is not None:
                await self._server.send(peer, reply)

    def _answer(self, message: Message) -> Message | None:
        match message:
            case LeaseRequest(capacity=capacity):
                return self._lease(capacity)
            case Heartbeat(lease_ids=lease_ids):
                self.heartbeats.append(lease_ids)
                self._heard_of.update(lease_ids)
                lost = [i for i in lease_ids if i in self.unknown]
                for lease_id in lost:
                    self._open.pop(lease_id, None)
                return HeartbeatReply(unknown=lost)
            case Submit(trajectory=trajectory):
                self.num_submissions += 1
                if self.num_ignored_submissions > 0:
                    self.num_ignored_submissions -= 1
                    return None
                self._open.pop(trajectory.lease_id, None)
                if trajectory.lease_id in self.late:
                    return SubmitReply(status="late")
                if any(t.episode_id == trajectory.episode_id for t in self.trajectories):
                    return SubmitReply(status="duplicate")
                self.trajectories.append(trajectory)
                if self.num_lost_answers > 0:
                    self.num_lost_answers -= 1
                    return None
                return SubmitReply(status="accepted")
            case Fail(lease_id=lease_id):
                self.failures.append(message)
                self._open.pop(lease_id, None)
                return FailReply()
        raise AssertionError(f"unexpected {message}")

    def _lease(self, capacity: int) -> LeaseReply:
        self.capacities.append(capacity)
        given = [lease for name, lease in self._open.items() if name not in self._heard_of]
        if not given:
            given = self._waiting[: min(capacity, self._at_once)]
            del self._waiting[: len(given)]
            self._open |= {lease.lease_id: lease for lease in given}
        self.most_open = max(self.most_open, len(self._open))
        done = not self._waiting and not self._open
        return LeaseReply(leases=given, retry_after_s=0.05, waiting_for="episodes that run", done=done)
