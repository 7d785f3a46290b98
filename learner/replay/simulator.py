"""The replay buffer's world, simulated: actors with any durations, failures, a learner, restarts; real `Replay` inside.

Time is virtual and everything is drawn from one seed, so a run is the same each time. After every event the invariants
of the design are checked; at the end it is known how busy each stage was.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from learner.replay import events
from learner.replay.machine import Replay
from learner.replay.state import FormedBatch, State
from protocol.config import Settings
from protocol.messages import (
    BatchDone,
    BatchRequest,
    Fail,
    FailReply,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeaseReply,
    LeaseRequest,
    Message,
    Submit,
    SubmitReply,
    TaskRef,
    Trajectory,
    Turn,
    VersionReady,
)

Durations = Callable[[random.Random], float]


class World(Struct, frozen=True, kw_only=True):
    """What is simulated around the buffer. Times are seconds of virtual time."""

    durations: Durations  # of one episode
    step_s: float  # the learner's time for one batch
    publish_s: float = 1.0  # from a step's end until every generator serves its weights
    fail_share: float = 0.0  # episodes that end in a failure
    silent_share: float = 0.0  # episodes whose actor dies without a word
    pass_rate: float = 0.5  # chance that a trajectory is resolved
    restart_every_s: float = 0.0  # the buffer is killed and brought back from its events; 0: never
    hosts: int = 8  # sandbox-actor processes that share the actors
    poll_s: float = 2.0  # how often actors with room, and a learner without a batch, ask again
    beat_s: float = 20.0  # how often running leases are extended
    seed: int = 0


class Outcome(Struct, frozen=True, kw_only=True):
    """How a simulated run went. Shares are of the time after the first batch was formed."""

    virtual_s: float
    trained: int
    actors_busy_share: float
    learner_busy_share: float
    wasted_share: float  # trajectories that were too stale to be trained on
    staleness_mean: float
    staleness_max: int
    num_events: int
    evaluations: int  # of held-out tasks, over before the run was


def heavy_tailed(median_s: float, sigma: float = 0.9, most_s: float = float("inf")) -> Durations:
    """Log-normal durations, cut at `most_s` (the episode's wall time)."""
    return lambda rng: min(median_s * rng.lognormvariate(0.0, sigma), most_s)


def light(mean_s: float) -> Durations:
    """Durations within a fifth of their mean."""
    return lambda rng: mean_s * rng.uniform(0.8, 1.2)


class Simulation:
    """One simulated run, from the first lease until the last step's weights are served."""

    def __init__(
        self, settings: Settings, tasks: list[TaskRef], world: World, held_out: Sequence[TaskRef] = ()
    ) -> None:
        self.settings = settings
        self.world = world
        self.now = 0.0
        self._tasks, self._held_out = tasks, held_out
        self._rng = random.Random(world.seed)
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._journal: list[bytes] = []
        self._replay = Replay(settings, tasks, held_out=held_out)
        self._remember(self._replay.start(0.0))
        self._idle = [settings.num_actors // world.hosts] * world.hosts
        self._idle[0] += settings.num_actors % world.hosts
        self._held: list[dict[str, Lease]] = [{} for _ in range(world.hosts)]
        self._busy_from: float | None = None  # when the first batch was formed: utilisation counts from here
        self._actor_s = 0.0
        self._learner_s = 0.0
        self._running_since = 0.0
        self._num_running = 0
        self._trained: set[tuple[int, int]] = set()
        self._staleness: list[int] = []
        self._finished = False

    def run(self) -> Outcome:
        """Simulate until the last step is trained."""
        for host in range(self.world.hosts):
            self._later(0.0, self._poll, host)
            self._later(self.world.beat_s * (1 + host / self.world.hosts), self._beat, host)
        self._later(0.0, self._ask_for_batch, 0)
        self._later(1.0, self._tick)
        if self.world.restart_every_s:
            self._later(self.world.restart_every_s, self._restart)
        num_events = 0
        while not self._finished:
            self.now, _, act, arguments = heapq.heappop(self._agenda)
            act(*arguments)
            self._check()
            num_events += 1
        measured = max(self.now - (self._busy_from or 0.0), 1e-9)
        tally = self._replay.state.tally
        return Outcome(
            virtual_s=self.now,
            trained=len(self._trained),
            actors_busy_share=self._actor_s / measured / self.settings.num_actors,
            learner_busy_share=self._learner_s / measured,
            wasted_share=tally.filtered.get("too_stale", 0) / max(tally.accepted, 1),
            staleness_mean=float(np.mean(self._staleness)),
            staleness_max=max(self._staleness),
            num_events=num_events,
            evaluations=sum(each.is_over for each in self._replay.state.held_out.evaluations.values()),
        )

    # --- actors ---------------------------------------------------------------------------------------------------

    def _poll(self, host: int) -> None:
        if self._idle[host]:
            reply = self._ask(LeaseRequest(actor=f"h{host}", capacity=self._idle[host]))
            assert isinstance(reply, LeaseReply)
            for lease in reply.leases:
                self._begin(host, lease)
        self._later(self.world.poll_s, self._poll, host)

    def _begin(self, host: int, lease: Lease) -> None:
        self._idle[host] -= 1
        self._held[host][lease.lease_id] = lease
        self._count_running(+1)
        fate = self._rng.random()
        duration = self.world.durations(self._rng)
        if fate < self.world.silent_share:
            self._later(duration * self._rng.random(), self._fall_silent, host, lease)
        elif fate < self.world.silent_share + self.world.fail_share:
            self._later(duration * self._rng.random(), self._fail, host, lease)
        else:
            self._later(duration, self._submit, host, lease, self.now)

    def _submit(self, host: int, lease: Lease, started: float) -> None:
        if self._end(host, lease):
            resolved = self._rng.random() < self.world.pass_rate
            reply = self._ask(Submit(actor=f"h{host}", trajectory=_trajectory(lease, resolved, started, self.now)))
            assert isinstance(reply, SubmitReply)
            assert reply.status == "accepted", f"{lease.lease_id} was heard of all the time, yet it is {reply.status}"

    def _fail(self, host: int, lease: Lease) -> None:
        if self._end(host, lease):
            reply = self._ask(Fail(actor=f"h{host}", lease_id=lease.lease_id, kind="sandbox.died", reason="simulated"))
            assert isinstance(reply, FailReply)

    def _fall_silent(self, host: int, lease: Lease) -> None:
        self._end(host, lease)

    def _end(self, host: int, lease: Lease) -> bool:
        self._idle[host] += 1
        self._count_running(-1)
        return self._held[host].pop(lease.lease_id, None) is not None

    def _beat(self, host: int) -> None:
        reply = self._ask(Heartbeat(actor=f"h{host}", lease_ids=list(self._held[host])))
        assert isinstance(reply, HeartbeatReply)
        assert not reply.unknown, f"leases that were heard of all the time are gone: {reply.unknown[:3]}"
        self._later(self.world.beat_s, self._beat, host)

    # --- learner --------------------------------------------------------------------------------------------------

    def _ask_for_batch(self, version: int) -> None:
        batch = self._ask(BatchRequest(learner="learner", version=version))
        if not isinstance(batch, FormedBatch):
            self._later(self.world.poll_s, self._ask_for_batch, version)
            return
        if self._busy_from is None:
            self._busy_from = self.now
        for item in batch.items:
            for member in item.finished:
                assert (member.group, member.member) not in self._trained, f"group {member.group} is trained on twice"
                self._trained.add((member.group, member.member))
                self._staleness.append(version - member.oldest_version)
        assert max(self._staleness) <= self.settings.max_staleness, "something too stale is trained on"
        self._learner_s += self.world.step_s
        self._later(self.world.step_s, self._finish_step, version + 1)

    def _finish_step(self, version: int) -> None:
        self._ask(BatchDone(learner="learner", batch_id=version, version=version))
        self._finished = version >= self.settings.steps
        self._later(self.world.publish_s, self._serve, version)
        if not self._finished:
            self._ask_for_batch(version)

    def _serve(self, version: int) -> None:
        self._ask(VersionReady(version=version))

    # --- the buffer's process -------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._remember(self._replay.tick(self.now))
        self._later(1.0, self._tick)

    def _restart(self) -> None:
        """All that is left of the buffer is its journal; every other one begins with a snapshot."""
        before = msgspec.msgpack.encode(self._replay.state)
        replay = Replay(self.settings, self._tasks, held_out=self._held_out)
        for record in self._journal:
            for event in events.decode(record):
                replay.ledger.fold(event)
        assert msgspec.msgpack.encode(replay.state) == before, "a restart loses or changes something"
        self._replay = Replay(self.settings, self._tasks, msgspec.msgpack.decode(before, type=State), self._held_out)
        self._remember(self._replay.start(self.now))
        self._later(self.world.restart_every_s, self._restart)

    def _ask(self, message: Message) -> Message | FormedBatch:
        outcome = self._replay.handle(message, self.now, position=len(self._journal))
        self._remember(outcome.events)
        return outcome.reply

    def _remember(self, happened: list[events.Event]) -> None:
        if happened and self.world.restart_every_s:
            self._journal.append(events.encode(happened))

    # --- bookkeeping ----------------------------------------------------------------------------------------------

    def _later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._order), act, arguments))

    def _count_running(self, change: int) -> None:
        if self._busy_from is not None:
            self._actor_s += self._num_running * (self.now - max(self._running_since, self._busy_from))
        self._running_since = self.now
        self._num_running += change

    def _check(self) -> None:
        """The invariants of the design."""
        replay, tally = self._replay, self._replay.state.tally
        ended = tally.accepted + tally.failed + tally.expired
        trained = replay.num_running - len(replay.ledger.scoring)
        assert tally.leased == trained + ended, "a lease ended twice or never"
        assert replay.num_running <= self.settings.num_actors
        assert replay.num_places <= replay.most_places, "more was admitted than the staleness bound allows"
        assert not tally.filtered.get("too_stale"), "something was thrown away for being late"


def _trajectory(lease: Lease, resolved: bool, started: float, finished: float) -> Trajectory:
    return Trajectory(
        episode_id=lease.episode_id,
        lease_id=lease.lease_id,
        task_id=lease.task_id,
        group_id=lease.group_id,
        member=lease.member,
        attempt=lease.attempt,
        resolved=resolved,
        reward=float(resolved),
        end_reason="submitted",
        turns=[Turn(start=1, end=2)],
        token_ids=np.zeros(2, np.int32),
        loss_mask=np.array([0, 1], np.uint8),
        logprobs=np.zeros(2, np.float32),
        versions=np.array([-1, lease.version], np.int32),
        started_at=started,
        finished_at=finished,
    )
