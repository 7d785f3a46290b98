"""Starts the parts of a run, watches them, restarts what may be restarted, and stops everything in order.

    replay buffer -> learner ranks and generators -> sandbox actors      (start; stop is the reverse)

A part that dies is named with its own error. Sandbox actors, generators and the replay buffer are started again (the
buffer recovers from its journal, a fresh actor goes on with the episodes of the dead one, a fresh generator adopts the
current weights), so often an hour (`restarts_per_hour`); a dead learner rank ends this life of the run; `session.py`
begins the next one from the last checkpoint. A part that lives and does not get on (`supervision/vigil.py`) is killed,
and then has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cluster import processes
from cluster.evaluation import while_training
from cluster.hosts import drains
from cluster.hosts.plan import Placed
from cluster.placement import Cluster
from cluster.reporting.fleet_states import FleetStates, Seen
from cluster.reporting.observer import Observer
from cluster.reporting.progress import Progress
from cluster.reporting.troubles import Troubles
from cluster.stop_signals import StopSignals
from cluster.supervision.part import LearnerLost, Part, PartFailed, cause_of
from cluster.supervision.vigil import Restarts, Signs, Vigil
from cluster.supervision.waits import all_of, deadline, within
from console.run_data.held_out import held_out
from console.watchers.watch import watch
from learner.replay.service.account import Account
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError
from protocol.messages import TaskRef
from protocol.metrics import Sink, Values

_FULL = 0.97  # share of a KV cache or of a host's memory from which fewer episodes run
_SAMPLE_S = 1.0
_STATUS_TIMEOUT_S = 10.0
_MOST_SAMPLES = 1000
_LEARNER_LAST_WORDS_S = 5.0
_PART_STOP_S = 3.0
_FOLLOW_S = 2.0


class Supervisor:
    """One run, from placed processes to the last one stopped."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        tasks: list[TaskRef],
        progress: Progress,
        sinks: list[Sink],
        stop: StopSignals,
        held_out: Sequence[TaskRef] = (),
    ) -> None:
        self.settings, self.cluster, self.tasks, self.held_out = settings, cluster, tasks, list(held_out)
        self.progress, self.sinks, self.stop = progress, sinks, stop
        self.steps: list[Values] = []
        self.system: dict[str, float] = {}
        self._started_at = time.monotonic()
        self._observer = Observer()
        self._vigil = Vigil(settings.stuck_after_s, settings.learner.step_timeout_s)
        self._restarts = Restarts(settings.restarts_per_hour)
        self.account: Account | None = None  # what the buffer said last of the run's episodes
        self._troubles = Troubles()
        self._told: set[str] = set()  # findings
        self._samples: list[Values] = []  # for the watchers, thinned when they become many
        self._replay: Part
        self._generators: list[Part] = []
        self._learners: list[Part] = []
        self._actors: list[Part] = []
        self._replay_endpoint = ""
        self._weights_endpoint: str | None = None
        self._generator_endpoints: list[str] = []
        self._restarting: set[asyncio.Task[None]] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}  # questions, by whom they are put to
        self._collecting = asyncio.Lock()
        self._left_alone: set[str] = set()  # parts that cannot be reached and may live
        self._states: FleetStates | None = None  # from the first sample on

    @property
    def parts(self) -> list[Part]:
        """Every process, in the order in which they start."""
        replay = [self._replay] if hasattr(self, "_replay") else []
        return [*replay, *self._learners, *self._generators, *self._actors]

    async def run(self) -> None:
        """Start, watch until the run is over or a stop is requested, stop.

        Raises:
            PartFailed: a process failed and may not be restarted.
            DeadlineError: a process was not ready in time.
        """
        try:
            await self._start()
            await self._watch()
        finally:
            await self._stop()

    # --- start ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        async with deadline(self.settings.start_timeout_s, lambda: self._not_ready()):
            starting = asyncio.create_task(self._start_parts())
            stopped = asyncio.create_task(self.stop.requested.wait())
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not starting.done():
                starting.cancel()
                return
            await starting

    async def _start_parts(self) -> None:
        for line in self.cluster.plan.lines() if len(self.cluster.plan.hosts) > 1 else []:
            self.progress.note(line.strip())
        self._replay = self._place_replay()
        num_generators = len(self.cluster.plan.of("generator"))
        self._replay_endpoint = await self._first_start(self._replay)
        learners = []
        if self.settings.phase != "eval":
            self._learners, self._weights_endpoint = await self._place_learners()
            learners = [self._first_start(part) for part in self._learners]
        self._generators = [self._place_generator(i) for i in range(num_generators)]
        self._actors = [self._place_actor(part) for part in self.cluster.plan.of("actors")]
        generators = [self._first_start(part) for part in self._generators]
        actors = [self._first_start(part) for part in self._actors]
        if self.cluster.is_networked:  # ports are known once they are bound
            self._generator_endpoints = await all_of(generators, besides=learners)
            await all_of(actors)
        else:
            self._generator_endpoints = [self.cluster.endpoint(part.name) for part in self._generators]
            await all_of([*generators, *learners, *actors])
        for part in self.parts:
            part.run()
        self.progress.note(f"all {len(self.parts)} processes are ready")

    async def _first_start(self, part: Part) -> Any:
        try:
            result = await part.start()
        except Exception as error:
            raise self._failure(part, error) from error
        self.progress.note(f"{part.name} is ready")
        return result

    def _place_replay(self) -> Part:
        return Part(
            "replay-buffer",
            "replay",
            lambda title: self.cluster.place(processes.ReplayBuffer, "replay-buffer", title),
            lambda handle: handle.start.remote(
                self.tasks, self.held_out, self._replay_endpoint or self.cluster.endpoint("replay")
            ),
        )

    async def _place_learners(self) -> tuple[list[Part], str]:
        num_ranks = len(self.cluster.plan.of("learner"))
        threads = self.settings.learner.threads
        handles = [
            self.cluster.place(processes.Learner, f"learner-{rank}", f"learner-{rank}", threads=threads)
            for rank in range(num_ranks)
        ]
        host, master_port, weights_port = await handles[0].reserve.remote()
        weights = f"tcp://{host}:{weights_port}" if self.cluster.is_networked else self.cluster.endpoint("weights")
        master = (host if self.cluster.is_networked else "127.0.0.1", master_port)

        def part(rank: int, handle: Any) -> Part:
            return Part(
                f"learner-{rank}",
                "learner",
                lambda _: handle,
                lambda h: h.start.remote(rank, num_ranks, master, self._replay_endpoint, weights),
            )

        return [part(rank, handle) for rank, handle in enumerate(handles)], weights

    def _place_generator(self, index: int) -> Part:
        name = f"generator-{index}"
        return Part(
            name,
            "generator",
            lambda title: self.cluster.place(processes.Generator, name, title, threads=self.settings.generator.threads),
            lambda handle: handle.start.remote(self.cluster.endpoint(name), self._weights_endpoint),
        )

    def _place_actor(self, placed: Placed) -> Part:
        return Part(
            placed.name,
            "actors",
            lambda title: self.cluster.place(processes.SandboxActor, placed.name, title),
            lambda handle: handle.start.remote(placed.episodes, self._replay_endpoint, self._generator_endpoints),
        )

    # --- watch ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Sample every part each second. Waits for the run's end: the learner (in an evaluation: the actors) is done,
        a part failed for good, or a stop is requested."""
        while not self.stop.requested.is_set():
            deciding = self._learners or self._actors
            if all(part.ending is not None and part.ending.done() for part in deciding):
                await self._sample(_STATUS_TIMEOUT_S)  # what was done since the last one counts in the summary
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SAMPLE_S):
                    await self.stop.requested.wait()
            await self._sample()
            if problem := await self._hear_news():
                raise PartFailed(problem, kind="actors")
            await self._end_stuck()
            await self._mend()
        if any(part.failed for part in self._learners):
            raise await self._learner_failure()

    async def _end_stuck(self) -> None:
        """Kill what no longer gets on; `_mend` then starts it again. What the silence of a part means whose host is not
        heard of either is for that host's lease to say."""
        parts = {part.name: part for part in self.parts if part.ending is not None and not part.ending.done()}
        signs = {
            name: Signs(part.role, part.answered_at, part.status, may_be_silent=self.cluster.is_cut_off(name))
            for name, part in parts.items()
        }
        for name, trouble in self._vigil.look(signs, time.monotonic()).items():
            self.progress.note(f"{name} is stuck and is killed: {trouble}")
            parts[name].trouble = trouble
            await asyncio.to_thread(self.cluster.end, name)

    async def _mend(self) -> None:
        gone = await asyncio.to_thread(self.cluster.gone)
        for part in self.parts:
            if part.ending is not None and not part.ending.done() and part.name in gone:
                part.give_up(gone[part.name])
                await asyncio.sleep(0)
            if part.ending is None or not part.ending.done():
                continue
            error = part.ending.exception()
            if error is None:
                continue  # its work is over
            if await asyncio.to_thread(self.cluster.may_live, part.name, error):
                if part.name not in self._left_alone:
                    self._left_alone.add(part.name)
                    self.progress.note(
                        f"{part.name} cannot be reached and may live: left alone until it surely is gone"
                    )
                continue
            self._left_alone.discard(part.name)
            if part.role == "learner":
                raise await self._learner_failure() from error
            if not self._restarts.take(part.name, time.monotonic()):
                raise self._failure(part, error, self._too_often) from error
            if part.name in gone and not await self._move(part):
                continue
            self.progress.note(f"{part.name} failed and is started again: {part.why(error)}")
            part.replace()
            part.ending = None
            self._restarting.add(asyncio.create_task(self._restart(part), name=f"restart of {part.name}"))
        for restart in [task for task in self._restarting if task.done()]:
            self._restarting.remove(restart)
            restart.result()

    async def _move(self, part: Part) -> bool:
        """Whether a part whose host is gone got a place elsewhere; if not, the run goes on without it, or ends."""
        try:
            host = await asyncio.to_thread(self.cluster.move, part.name)
        except ConfigError as error:
            alike = self._generators if part.role == "generator" else self._actors
            if alike == [part]:
                raise self._failure(part, error) from error
            self.progress.note(f"the run goes on without {part.name}: {error}")
            if part.role == "generator":
                del self._generator_endpoints[alike.index(part)]
            alike.remove(part)
            await asyncio.gather(*(self._tell_generators(actor) for actor in self._actors))
            return False
        self.progress.note(f"{part.name} moves to {host}")
        return True

    async def _learner_failure(self) -> PartFailed:
        """Why the learner ended: one rank's own error, if there is one, for the others only say that they lost it."""
        await asyncio.wait([part.ending for part in self._learners if part.ending], timeout=_LEARNER_LAST_WORDS_S)
        failures = [self._failure(part, part.error) for part in self._learners if part.error is not None]
        return min(failures, key=lambda failure: isinstance(failure, LearnerLost))

    async def _restart(self, part: Part) -> None:
        try:
            async with asyncio.timeout(self.settings.start_timeout_s):
                result = await part.start()
        except Exception as error:
            raise self._failure(part, error) from error
        part.run()
        self.progress.note(f"{part.name} is ready again")
        if part.role == "generator":
            self._generator_endpoints[self._generators.index(part)] = result
            await asyncio.gather(*(self._tell_generators(actor) for actor in self._actors))

    async def _tell_generators(self, actor: Part) -> None:
        """Where the generators are now. One that is down hears of them when it is started again."""
        with contextlib.suppress(Exception):  # see _ask
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                await actor.handle.update_generators.remote(self._generator_endpoints)

    async def _sample(self, wait_s: float = _SAMPLE_S) -> None:
        """Ask everybody at once. A silent one holds up nothing: what it says comes into a later sample."""
        parts = [part for part in self.parts if part.can_answer]
        for part in parts:
            self._ask_aside(part.name, functools.partial(self._ask, part))
        self._ask_aside("pressure", self._report_pressure)
        self._ask_aside("steps", self._collect_steps)
        if self.held_out:
            self._ask_aside("evaluations", self._collect_evaluations)
        if self.cluster is not None and self.cluster.fleet is not None:
            self._ask_aside("hosts", self._follow_hosts)
        await asyncio.wait(self._asking.values(), timeout=wait_s)
        by_role: dict[str, list[Values]] = {}
        for part in self.parts:
            by_role.setdefault(part.role, []).append(part.status)
        now = time.monotonic()
        stalled = [part.name for part in parts if now - part.answered_at > self.settings.stuck_after_s / 2]
        self.system = self._observer.sample(by_role, now - self._started_at, len(stalled))
        step = int(self.steps[-1]["step"]) if self.steps else 0
        self._samples.append(self.system | {"step": float(step)})
        if len(self._samples) > _MOST_SAMPLES:
            self._samples = self._samples[::2]
        for sink in self.sinks:
            sink.write("system", self.system, step)
        self.progress.sample(self.system, ", ".join(f"{name} (stalled)" for name in stalled))
        if self._states is None:
            self._states = FleetStates(self.cluster.files.directory)
        self._states.write([self._seen(part, part.name in stalled) for part in self.parts], time.time())

    def _seen(self, part: Part, is_stalled: bool) -> Seen:
        if part.failed:
            state = "failed"
        elif is_stalled or part.name in self._left_alone:
            state = "silent"
        elif part.ending is None:
            state = "starting"
        else:
            state = "ended" if part.ending.done() else "working"
        host = self.cluster.plan.host_of(part.name)
        return Seen(part.name, part.role, host, state, part.num_restarts, part.status)

    async def _hear_news(self) -> str:
        """Say what goes wrong; why the run must end, if it must."""
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                news = await self._replay.handle.news.remote()
        except Exception:  # see _ask
            return ""
        for line in self._troubles.lines(news, time.monotonic()):
            self.progress.note(line)
        return f"{news.given_up} (logs/sandbox-actor-*.log)" if news.given_up else ""

    async def _take_account(self) -> None:
        with contextlib.suppress(Exception):  # see _ask
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                self.account = await self._replay.handle.account.remote()

    def _ask_aside(self, name: str, question: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin to ask, unless the same question is still open; each has its own deadline."""
        if name not in self._asking or self._asking[name].done():
            self._asking[name] = asyncio.create_task(question(), name=f"question: {name}")

    async def _ask(self, part: Part) -> None:
        with contextlib.suppress(Exception):  # a dead part is `_mend`'s; a silent one shows as stalled
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                part.status = await part.handle.status.remote()
            part.answered_at = time.monotonic()

    async def _report_pressure(self) -> None:
        """Tell the replay buffer, which decides how many episodes run at once, how full everything else is."""
        levels = {part.name: {"kv_cache": part.status.get("kv_used_share", 0.0) / _FULL} for part in self._generators}
        for part in self._actors:
            levels[part.name] = {n: part.status.get(f"host_{n}_share", 0.0) / _FULL for n in ("cpu", "memory")}
        with contextlib.suppress(Exception):  # see _ask
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                for source, found in levels.items():
                    await self._replay.handle.report_pressure.remote(source, found)

    async def _collect_steps(self) -> None:
        if not self._learners:
            return
        async with self._collecting:
            try:
                async with asyncio.timeout(_STATUS_TIMEOUT_S):
                    records = await self._learners[0].handle.pop_records.remote()
            except Exception:  # see _ask
                return
        for record in records:
            self.steps.append(record)
            self.progress.step(record)
            for sink in self.sinks:
                sink.write("step", record, int(record["step"]))
        if records:
            self._watch_over(int(records[-1]["step"]))

    async def _collect_evaluations(self, *, at_the_end: bool = False) -> None:
        """Score the evaluations of held-out tasks that are over."""
        directory = self.cluster.files.directory
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                known = sorted(while_training.written_versions(directory))
                evaluations = await self._replay.handle.evaluations.remote(known)
        except Exception:  # see _ask
            return
        for evaluation in evaluations:
            report = while_training.score(evaluation, self.held_out, self.settings.eval.runs_in_training)
            said = while_training.line(evaluation, report)
            if not evaluation.is_over:
                if at_the_end:
                    self.progress.note(f"{said}: it was not finished, and is no point of the curve")
                continue
            while_training.write(directory, evaluation, report)  # first: it is what says that this was done
            for sink in self.sinks:
                sink.write("eval", while_training.metrics(evaluation, report), evaluation.version)
            self.progress.note(said)

    def _watch_over(self, step: int) -> None:
        """Say what the watchers see, once each; in the metrics it is the step since which it holds."""
        found = watch(self.steps, self._samples, held_out(self.cluster.files.directory))
        for finding in found:
            if finding.name not in self._told:
                self._told.add(finding.name)
                self.progress.warn(finding.line)
        if found:
            for sink in self.sinks:
                sink.write("watch", {finding.name: float(finding.since) for finding in found}, step)

    # --- hosts that come and go -----------------------------------------------------------------------------------

    async def _follow_hosts(self) -> None:
        """Hosts that have joined get their share; those that are to be drained give theirs up."""
        await asyncio.sleep(_FOLLOW_S)
        try:
            newcomers = await asyncio.to_thread(self.cluster.welcome)
            for placed in newcomers:  # generators first
                await self._bring_up(placed)
        except LonghaulError as error:
            self.progress.note(f"a host that joined cannot be used: {error}")
        for host in drains.asked(self.cluster.files.directory, [host.name for host in self.cluster.plan.hosts]):
            await self._drain(host)

    async def _bring_up(self, placed: Placed) -> None:
        async with deadline(self.settings.start_timeout_s, lambda: f"{placed.name} on {placed.host}"):
            if placed.role == "generator":
                part = self._place_generator(int(placed.name.removeprefix("generator-")))
                self._generator_endpoints.append(await self._first_start(part))
                self._generators.append(part)
                await asyncio.gather(*(self._tell_generators(actor) for actor in self._actors))
            else:
                part = self._place_actor(placed)
                await self._first_start(part)
                self._actors.append(part)
            part.run()

    async def _drain(self, host: str) -> None:
        """Episodes there are finished, generations go on elsewhere; then nothing of the run is left on that host."""
        there = [part for part in self.parts if self.cluster.plan.host_of(part.name) == host]
        fixed = [part.name for part in there if part.role in ("learner", "replay")]
        generators = [part for part in there if part.role == "generator"]
        if fixed or len(generators) == len(self._generators):
            kept = fixed or [part.name for part in generators]
            self.progress.note(f"{host} is not drained: the run cannot go on without {', '.join(kept)}")
            return
        self.progress.note(f"{host} is being drained")
        for part in generators:
            self._generator_endpoints.remove(self._generator_endpoints[self._generators.index(part)])
            self._generators.remove(part)
        await asyncio.gather(*(self._tell_generators(actor) for actor in self._actors))
        await within(_PART_STOP_S, *(self._stop_part(part) for part in generators))
        actors = [part for part in there if part.role == "actors"]
        for part in actors:
            with contextlib.suppress(Exception):  # one that died meanwhile is drained
                async with asyncio.timeout(_STATUS_TIMEOUT_S):
                    await part.handle.drain.remote()
        await asyncio.wait([part.ending for part in actors if part.ending], timeout=self.settings.episode.wall_time_s)
        for part in actors:
            self._actors.remove(part)
        await asyncio.to_thread(self.cluster.give_back, host)
        self.progress.note(f"{host} is drained")

    # --- stop -----------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """The learner saves its checkpoint while the actors wind down. Past its deadline a part is killed with Ray."""
        for task in (*self._restarting, *(t for name, t in self._asking.items() if name != "steps")):
            task.cancel()  # but not while steps are on their way, which are handed over once
        running = [part for part in self.parts if part.ending is not None and not part.ending.done()]
        self.progress.note("stopping")
        await asyncio.gather(
            self._stop_learners([part for part in running if part.role == "learner"]),
            within(_PART_STOP_S, *(self._stop_part(part) for part in running if part.role == "actors")),
        )
        await self._collect_steps()
        if self.held_out:
            await self._collect_evaluations(at_the_end=True)
        await self._take_account()
        rest = [part for part in running if part.role in ("generator", "replay")]
        await within(_PART_STOP_S, *(self._stop_part(part) for part in rest))
        for part in self.parts:
            if part.ending is not None:
                part.ending.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await part.ending

    async def _stop_learners(self, running: list[Part]) -> None:
        """Until the step in hand is done and saved, `stop_timeout_s` at most. A second signal ends the wait, and so
        does a lost rank: without it the others can save nothing."""
        if not running:
            return
        lost = any(part.failed for part in self._learners)
        stopping = asyncio.gather(*(self._stop_part(part) for part in running))
        insisted = asyncio.create_task(self.stop.insisted.wait())
        ends: set[asyncio.Future[Any]] = {stopping, insisted}
        await asyncio.wait(
            ends,
            timeout=_PART_STOP_S if lost else self.settings.stop_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not stopping.done() and not lost:
            self.progress.note("the learner did not end its step and save it: its last checkpoint stands")
        for waiting in (stopping, insisted):
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting

    async def _stop_part(self, part: Part) -> None:
        assert part.ending is not None
        with contextlib.suppress(Exception):  # it may die meanwhile: gone is what was wanted
            await part.handle.stop.remote()
            await asyncio.wait({part.ending})

    # --- errors ---------------------------------------------------------------------------------------------------

    @property
    def _too_often(self) -> str:
        return f"and was started again restarts_per_hour ({self.settings.restarts_per_hour}) times within the hour"

    def _failure(self, part: Part, error: BaseException, then: str = "") -> PartFailed:
        from ray.exceptions import RayActorError

        log = self.cluster.files.logs / f"{part.name}.log"
        text = f"{part.name} failed{f' {then}' if then else ''}: {part.why(error)}"
        if not isinstance(cause_of(error), LonghaulError):  # not one that explains itself: show where it came from
            text += f"\n{error}\n--- end of {log}\n{processes.last_lines(log)}"
        lost = isinstance(error, RayActorError) or getattr(cause_of(error), "kind", "") in ("rank_lost", "host_gone")
        return (LearnerLost if lost and part.role == "learner" else PartFailed)(text, kind=part.role)

    def _not_ready(self) -> str:
        waiting = [part.name for part in self.parts if part.ending is None]
        return f"{', '.join(waiting) or 'processes'} to be ready (logs are in {self.cluster.files.logs})"
