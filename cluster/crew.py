"""The processes of a run: how each is placed and started, where it is reached, and what is said when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from cluster import processes
from cluster.hosts.plan import Placed
from cluster.placement import Cluster
from cluster.run_files import newest_step
from cluster.supervision.part import LearnerLost, Part, PartFailed, cause_of, error_line
from cluster.supervision.waits import all_of, deadline
from protocol.config import Settings
from protocol.errors import DeadlineError, LonghaulError
from protocol.messages import TaskRef

_TELL_S = 10.0
_LOOK_S = 0.2
_START_AGAIN_S = 15.0


class Crew:
    """All parts of a run; empty until `start`.

    Args:
        note: takes a line for whoever watches the run.
    """

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        tasks: list[TaskRef],
        held_out: list[TaskRef],
        note: Callable[[str], None],
    ) -> None:
        self._settings, self._cluster, self._note = settings, cluster, note
        self._tasks, self._held_out = tasks, held_out
        self.replay: Part
        self.generators: list[Part] = []
        self.learners: list[Part] = []
        self.actors: list[Part] = []
        self._replay_endpoint = ""
        self._weights_endpoint: str | None = None
        self._meeting = ("", 0)  # of the learner's ranks
        self._began_at = 0  # newest checkpoint that was there before the run
        self._generator_endpoints: list[str] = []

    @property
    def parts(self) -> list[Part]:
        """Every process, in the order in which they start."""
        return [*([self.replay] if hasattr(self, "replay") else []), *self.learners, *self.generators, *self.actors]

    async def start(self) -> None:
        """Place and start everything; returns when all are at work.

        Raises:
            PartFailed: one of them could not start.
        """
        plan = self._cluster.plan
        for line in plan.lines() if len(plan.hosts) > 1 else []:
            self._note(line.strip())
        self.replay = self._place_replay()
        self._replay_endpoint = await self._first_start(self.replay)
        learners = []
        if self._settings.phase != "eval":
            num_ranks = len(plan.of("learner"))
            self._began_at = newest_step(self._cluster.files.directory)
            self.learners = [self._place_learner(rank, num_ranks) for rank in range(num_ranks)]
            await self._meet()
            learners = [self._first_start(part) for part in self.learners]
        self.generators = [self._place_generator(i) for i in range(len(plan.of("generator")))]
        self.actors = [self._place_actor(part) for part in plan.of("actors")]
        generators = [self._first_start(part) for part in self.generators]
        if self._cluster.is_networked:  # ports are known once they are bound
            self._generator_endpoints = await all_of(generators, besides=learners)
            await all_of(self._first_start(part) for part in self.actors)
        else:
            self._generator_endpoints = [self._cluster.endpoint(part.name) for part in self.generators]
            await all_of([*generators, *learners, *(self._first_start(part) for part in self.actors)])
        for part in self.parts:
            part.run()
        self._note(f"all {len(self.parts)} processes are ready")

    async def bring_up(self, placed: Placed) -> None:
        """Start a generator or a sandbox actor that the plan has got meanwhile. Raises `PartFailed`."""
        if placed.role == "generator":
            part = self._place_generator(int(placed.name.removeprefix("generator-")))
            endpoint = await self._first_start(part)
            self.generators.append(part)
            self._generator_endpoints.append(endpoint)
            await self.tell_generators()
        else:
            part = self._place_actor(placed)
            await self._first_start(part)
            self.actors.append(part)
            await self.tell_generators()  # one may have come meanwhile
        part.run()

    async def restart(self, part: Part) -> None:
        """Start the fresh process of `part`. Raises `PartFailed`.

        A sandbox actor may come back while its place does not work (its Docker daemon is down, say): it is tried as
        long as an outage may last. Then the run goes on without it, if it has others.
        """
        give_up_at = time.monotonic() + self._settings.replay.give_up_s
        said = ""
        while True:
            try:
                await self._restart(part)
                return
            except PartFailed as error:
                if part.role != "actors":
                    raise
                failure, why = error, str(error).splitlines()[0]
            if why != said:
                said = why
                self._note(f"{why}; it is started again every {_START_AGAIN_S:.0f} s")
            await asyncio.sleep(_START_AGAIN_S)
            await self._end_in_time(part)
            # From here on nothing else has its turn: another one may have given up meanwhile, or this one's host left.
            if part not in self.actors:
                return
            if time.monotonic() >= give_up_at:
                if self.actors == [part]:
                    raise failure
                self.actors.remove(part)
                self._note(f"the run goes on without {part.name}: {why}")
                return
            part.replace()

    async def _end_in_time(self, part: Part) -> None:
        with contextlib.suppress(Exception):  # it has nothing that another process of its name must wait for
            async with asyncio.timeout(_TELL_S):
                await self._end(part)

    async def _restart(self, part: Part) -> None:
        """Once, `start_timeout_s` at most."""
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                if part.role != "replay":
                    await self._raise_fence(part)
                result = await part.start()
                if part.role == "replay":  # which begins without knowing who was replaced
                    await self._raise_fence(*self.parts)
        except Exception as error:
            raise self.failure(part, error) from error
        part.run()
        self._note(f"{part.name} is ready again")
        if part.role == "generator" and part in self.generators:
            self._generator_endpoints[self.generators.index(part)] = result
            await self.tell_generators()

    async def restart_learners(self) -> None:
        """End all ranks, and start fresh ones from the newest checkpoint, `start_timeout_s` at most.

        Raises:
            LearnerLost: it could not be done this time.
            PartFailed: nor will it be another time.
        """
        from ray.exceptions import RayActorError

        try:
            async with deadline(self._settings.start_timeout_s, lambda: "the learner's ranks to be there again"):
                await asyncio.gather(*(self._end(part) for part in self.learners))
                for part in self.learners:
                    part.replace()
                await self._raise_fence(*self.learners)
                await self._meet()
                await all_of(self._first_start(part) for part in self.learners)
        except (DeadlineError, RayActorError) as error:
            raise LearnerLost(f"the learner did not start again: {error_line(error)}", kind="learner") from error
        for part in self.learners:
            part.run()

    async def leave_out(self, generators: list[Part]) -> None:
        """No actor asks these generators any more."""
        for part in generators:
            if part in self.generators:
                del self._generator_endpoints[self.generators.index(part)]
                self.generators.remove(part)
        await self.tell_generators()

    async def tell_generators(self) -> None:
        """Tell every actor where the generators are now. One that is down hears of them when it is started again."""

        async def tell(actor: Part) -> None:
            with contextlib.suppress(Exception):  # a dead one is started again, a silent one shows as stalled
                async with asyncio.timeout(_TELL_S):
                    await actor.handle.update_generators.remote(self._generator_endpoints)

        await asyncio.gather(*(tell(actor) for actor in self.actors))

    async def _raise_fence(self, *parts: Part) -> None:
        """The buffer, which says what is trained, hears no older process of these parts. One that is down is told when
        it is back."""
        with contextlib.suppress(Exception):
            generations = {part.name: self._cluster.generations.get(part.name, 0) for part in parts}
            async with asyncio.timeout(_TELL_S):
                await self.replay.handle.raise_fence.remote(generations)

    async def _first_start(self, part: Part) -> Any:
        try:
            result = await part.start()
        except Exception as error:
            raise self.failure(part, error) from error
        self._note(f"{part.name} is ready")
        return result

    def _place_replay(self) -> Part:
        return Part(
            "replay-buffer",
            "replay",
            lambda title: self._cluster.place(processes.ReplayBuffer, "replay-buffer", title),
            lambda handle: handle.start.remote(
                self._tasks, self._held_out, self._replay_endpoint or self._cluster.endpoint("replay")
            ),
        )

    def _place_learner(self, rank: int, num_ranks: int) -> Part:
        name, threads = f"learner-{rank}", self._settings.learner.threads
        return Part(
            name,
            "learner",
            lambda title: self._cluster.place(processes.Learner, name, title, threads=threads),
            lambda handle: handle.start.remote(
                rank, num_ranks, self._meeting, self._replay_endpoint, self._weights_endpoint, self._resume()
            ),
        )

    async def _meet(self) -> None:
        """Agree on where ranks that were just placed meet. Where the weights come from never changes: generators that
        are at work look for them there."""
        host, master_port, weights_port = await self.learners[0].handle.reserve.remote()
        hosts = {self._cluster.plan.host_of(part.name) for part in self.learners}
        self._meeting = (host if len(hosts) > 1 else "127.0.0.1", master_port)  # gloo protects nothing
        if self._weights_endpoint is None:
            of_host = f"tcp://{host}:{weights_port}"
            self._weights_endpoint = of_host if self._cluster.is_networked else self._cluster.endpoint("weights")

    def _resume(self) -> str | None:
        """What the ranks start from: the newest checkpoint that they wrote, else what the run began with."""
        written = newest_step(self._cluster.files.directory) > self._began_at
        return "auto" if written else self._settings.resume

    async def _end(self, part: Part) -> None:
        """Have nothing of its process live any more; waits until Ray says so."""
        import ray
        from ray.exceptions import ActorDiedError

        if self._cluster.fleet is None:  # a reaper, told by name, might find the fresh one
            await asyncio.to_thread(self._cluster.end, part.name)
        ray.kill(part.handle)
        while True:  # for as long as the caller's deadline lets it
            try:
                await part.handle.status.remote()
            except ActorDiedError:
                return
            except Exception:  # its own answer, or none: it may live
                pass
            await asyncio.sleep(_LOOK_S)

    def _place_generator(self, index: int) -> Part:
        name = f"generator-{index}"
        threads = self._settings.generator.threads
        return Part(
            name,
            "generator",
            lambda title: self._cluster.place(processes.Generator, name, title, threads=threads),
            lambda handle: handle.start.remote(self._cluster.endpoint(name), self._weights_endpoint),
        )

    def _place_actor(self, placed: Placed) -> Part:
        return Part(
            placed.name,
            "actors",
            lambda title: self._cluster.place(processes.SandboxActor, placed.name, title),
            lambda handle: handle.start.remote(placed.episodes, self._replay_endpoint, self._generator_endpoints),
        )

    # --- errors ---------------------------------------------------------------------------------------------------

    def failure(self, part: Part, error: BaseException, then: str = "") -> PartFailed:
        """What is said of a part that failed, with the end of its log where its own error does not explain itself."""
        from ray.exceptions import RayActorError

        log = self._cluster.files.logs / f"{part.name}.log"
        text = f"{part.name} failed{f' {then}' if then else ''}: {part.why(error)}"
        if not isinstance(cause_of(error), LonghaulError):
            text += f"\n{error}\n--- end of {log}\n{processes.last_lines(log)}"
        lost = isinstance(error, RayActorError) or getattr(cause_of(error), "kind", "") in ("rank_lost", "host_gone")
        return (LearnerLost if lost and part.role == "learner" else PartFailed)(text, kind=part.role)

    def not_ready(self) -> str:
        """What a start waits for, in words."""
        waiting = [part.name for part in self.parts if part.ending is None]
        return f"{', '.join(waiting) or 'processes'} to be ready (logs are in {self._cluster.files.logs})"
