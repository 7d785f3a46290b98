"""Has the parts of a run started, watches them, restarts what may be restarted, and stops everything in order.

    replay buffer -> learner ranks and generators -> sandbox actors      (start; stop is the reverse)

A part that dies is named with its own error. Sandbox actors, generators and the replay buffer are started again (the
buffer recovers from its journal, a fresh actor goes on with the episodes of the dead one, a fresh generator adopts the
current weights), so often an hour (`restarts_per_hour`). When a learner rank dies, all ranks are started again from the
newest checkpoint while the others work on; where its host is gone, or Ray itself, this life of the run ends, and
`session.py` begins the next one. A part that lives and does not get on (`supervision/vigil.py`) is killed, and then has
died.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cluster.crew import Crew
from cluster.evaluation import while_training
from cluster.evaluation.best import BestCheckpoint
from cluster.hosts.changes import HostChanges
from cluster.placement import Cluster
from cluster.reporting.all_sinks import AllSinks
from cluster.reporting.fleet_states import FleetStates, Seen
from cluster.reporting.observer import Observer
from cluster.reporting.progress import Progress
from cluster.reporting.troubles import Troubles
from cluster.run_files import newest_step
from cluster.stop_signals import StopSignals
from cluster.supervision.part import LearnerLost, LifeLost, Part, PartFailed
from cluster.supervision.vigil import Restarts, Signs, Vigil
from cluster.supervision.waits import deadline, within
from console.run_data.held_out import held_out
from console.watchers.watch import watch
from learner.replay.service.account import Account
from protocol.config import Settings
from protocol.messages import TaskRef
from protocol.metrics import Sink, Values

_FULL = 0.97  # share of a KV cache or of a host's memory from which fewer episodes run
_SAMPLE_S = 1.0
_STATUS_TIMEOUT_S = 10.0
_MOST_SAMPLES = 1000
_LEARNER_LAST_WORDS_S = 5.0
_PART_STOP_S = 3.0


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
        self.progress, self.stop = progress, stop
        self._sink = AllSinks(sinks, progress.note)
        self.steps: list[Values] = []
        self.system: dict[str, float] = {}
        self._started_at = time.monotonic()
        self._observer = Observer()
        self._failed_checkpoints = 0.0
        self._vigil = Vigil(settings.stuck_after_s, settings.learner.step_timeout_s)
        self._restarts = Restarts(settings.restarts_per_hour)
        self.account: Account | None = None  # what the buffer said last of the run's episodes
        self._best: BestCheckpoint | None = None
        if settings.checkpoint.keep_best:
            self._best = BestCheckpoint(cluster.files.directory)
        self._troubles = Troubles()
        self._told: set[str] = set()  # findings
        self._samples: list[Values] = []  # for the watchers, thinned when they become many
        self.crew = Crew(settings, cluster, tasks, self.held_out, progress.note)
        self._hosts = HostChanges(settings, cluster, self.crew, progress.note)
        self._restarting: set[asyncio.Task[None]] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}  # questions, by whom they are put to
        self._collecting = asyncio.Lock()
        self._left_alone: set[str] = set()  # parts that cannot be reached and may live
        self._states: FleetStates | None = None  # from the first sample on

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
        starting = asyncio.create_task(self.crew.start())
        stopped = asyncio.create_task(self.stop.requested.wait())
        try:
            async with deadline(self.settings.start_timeout_s, lambda: self.crew.not_ready()):
                await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
        finally:  # nobody waits for what would still come of it
            starting.cancel()
            stopped.cancel()

    # --- watch ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Sample every part each second. Waits for the run's end: the learner (in an evaluation: the actors) is done,
        a part failed for good, or a stop is requested."""
        while not self.stop.requested.is_set():
            deciding = self.crew.learners or self.crew.actors
            if all(part.ending is not None and part.ending.done() and not part.failed for part in deciding):
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
        if any(part.failed for part in self.crew.learners):
            raise await self._learner_failure()

    async def _end_stuck(self) -> None:
        """Kill what no longer gets on; `_mend` then starts it again. What the silence of a part means whose host is not
        heard of either is for that host's lease to say."""
        parts = {part.name: part for part in self.crew.parts if part.ending is not None and not part.ending.done()}
        signs = {
            name: Signs(part.role, part.answered_at, part.status, may_be_silent=self.cluster.is_cut_off(name))
            for name, part in parts.items()
        }
        for name, trouble in self._vigil.look(signs, time.monotonic()).items():
            self.progress.note(f"{name} is stuck and is killed: {trouble}")
            parts[name].trouble = trouble
            await asyncio.to_thread(self.cluster.end, name)

    async def _mend(self) -> None:
        if dead := self.cluster.dead_ray():
            raise LifeLost(f"Ray's {dead} died on this host, and its other processes with it", kind="ray")
        gone = await asyncio.to_thread(self.cluster.gone)
        for part in self.crew.parts:
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
                await self._mend_learners(may_restart=part.name not in gone)
                continue
            if not self._restarts.take(part.name, time.monotonic()):
                raise self.crew.failure(part, error, self._too_often) from error
            if part.name in gone and not await self._hosts.move(part):
                continue
            self.progress.note(f"{part.name} failed and is started again: {part.why(error)}")
            part.replace()
            part.ending = None
            self._restarting.add(asyncio.create_task(self.crew.restart(part), name=f"restart of {part.name}"))
        for restart in [task for task in self._restarting if task.done()]:
            self._restarting.remove(restart)
            restart.result()

    async def _mend_learners(self, *, may_restart: bool) -> None:
        """Have all ranks started again because one is lost; everything else works on. Raises `PartFailed` where
        something else than a loss is the matter, and where a host is gone: then the whole run begins another life."""
        failure = await self._learner_failure()
        if not isinstance(failure, LearnerLost) or not may_restart:
            raise failure
        for part in self.crew.learners:
            part.ending = None
        self._restarting.add(asyncio.create_task(self._restart_learners(failure), name="restart of the learner"))

    async def _restart_learners(self, failure: LearnerLost) -> None:
        while self._restarts.take("learner", time.monotonic()):
            step = newest_step(self.cluster.files.directory)
            said = str(failure).splitlines()[0]
            self.progress.note(f"{said}; the ranks start again from step {step}, the others work on")
            try:
                await self.crew.restart_learners()
            except LearnerLost as error:
                failure = error
            else:
                self.progress.note("the learner is at work again")
                return
        raise PartFailed(f"the learner failed {self._too_often}: {failure}", kind="learner") from failure

    async def _learner_failure(self) -> PartFailed:
        """Why the learner ended: one rank's own error, if there is one, for the others only say that they lost it."""
        await asyncio.wait([part.ending for part in self.crew.learners if part.ending], timeout=_LEARNER_LAST_WORDS_S)
        failures = [self.crew.failure(part, part.error) for part in self.crew.learners if part.error is not None]
        return min(failures, key=lambda failure: isinstance(failure, LearnerLost))

    async def _sample(self, wait_s: float = _SAMPLE_S) -> None:
        """Ask everybody at once. A silent one holds up nothing: what it says comes into a later sample."""
        parts = [part for part in self.crew.parts if part.can_answer]
        for part in parts:
            self._ask_aside(part.name, functools.partial(self._ask, part))
        self._ask_aside("pressure", self._report_pressure)
        self._ask_aside("steps", self._collect_steps)
        if self.held_out:
            self._ask_aside("evaluations", self._collect_evaluations)
        if self.cluster is not None and self.cluster.fleet is not None:
            self._ask_aside("hosts", self._hosts.follow)
        await asyncio.wait(self._asking.values(), timeout=wait_s)
        by_role: dict[str, list[Values]] = {}
        for part in self.crew.parts:
            by_role.setdefault(part.role, []).append(part.status)
        self._tell_checkpoints()
        now = time.monotonic()
        stalled = [part.name for part in parts if now - part.answered_at > self.settings.stuck_after_s / 2]
        self.system = self._observer.sample(by_role, now - self._started_at, len(stalled))
        step = int(self.steps[-1]["step"]) if self.steps else 0
        self._samples.append(self.system | {"step": float(step)})
        if len(self._samples) > _MOST_SAMPLES:
            self._samples = self._samples[::2]
        self._sink.write("system", self.system, step)
        self.progress.sample(self.system, ", ".join(f"{name} (stalled)" for name in stalled))
        if self._states is None:
            self._states = FleetStates(self.cluster.files.directory)
        self._states.write([self._seen(part, part.name in stalled) for part in self.crew.parts], time.time())

    def _tell_checkpoints(self) -> None:
        """Say that one could not be saved; the one before stands, and the next is tried when it is due."""
        failed = max((part.status.get("failed_checkpoints", 0.0) for part in self.crew.learners), default=0.0)
        if failed > self._failed_checkpoints:
            where = self.cluster.files.logs / "learner-*.log"
            self.progress.note(f"a checkpoint could not be saved ({where} say why): the one before stands")
        self._failed_checkpoints = failed

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
                news = await self.crew.replay.handle.news.remote()
        except Exception:  # see _ask
            return ""
        for line in self._troubles.lines(news, time.monotonic()):
            self.progress.note(line)
        return f"{news.given_up} (logs/sandbox-actor-*.log)" if news.given_up else ""

    async def _take_account(self) -> None:
        with contextlib.suppress(Exception):  # see _ask
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                self.account = await self.crew.replay.handle.account.remote()

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
        levels = {
            part.name: {"kv_cache": part.status.get("kv_used_share", 0.0) / _FULL} for part in self.crew.generators
        }
        for part in self.crew.actors:
            levels[part.name] = {n: part.status.get(f"host_{n}_share", 0.0) / _FULL for n in ("cpu", "memory")}
        with contextlib.suppress(Exception):  # see _ask
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                for source, found in levels.items():
                    await self.crew.replay.handle.report_pressure.remote(source, found)

    async def _collect_steps(self) -> None:
        if not self.crew.learners:
            return
        async with self._collecting:
            try:
                async with asyncio.timeout(_STATUS_TIMEOUT_S):
                    records = await self.crew.learners[0].handle.pop_records.remote()
            except Exception:  # see _ask
                return
        for record in records:  # ranks that started again may take a step again
            self.steps = [earlier for earlier in self.steps if earlier["step"] < record["step"]]
            self.steps.append(record)
            self.progress.step(record)
            self._sink.write("step", record, int(record["step"]))
        if records:
            self._watch_over(int(records[-1]["step"]))

    async def _collect_evaluations(self, *, at_the_end: bool = False) -> None:
        """Score the evaluations of held-out tasks that are over."""
        directory = self.cluster.files.directory
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                known = sorted(while_training.written_versions(directory))
                evaluations = await self.crew.replay.handle.evaluations.remote(known)
        except Exception:  # see _ask
            return
        for evaluation in evaluations:
            report = while_training.score(evaluation, self.held_out, self.settings.eval.runs_in_training)
            said = while_training.line(evaluation, report)
            if not evaluation.is_over:
                if at_the_end:
                    self.progress.note(f"{said}: it was not finished, and is no point of the curve")
                continue
            path = while_training.write(directory, evaluation, report)  # first: it is what says that this was done
            if self._best is not None:
                self._best.heed(path)
            self._sink.write("eval", while_training.metrics(evaluation, report), evaluation.version)
            self.progress.note(said)
        self._point_to_best()

    def _point_to_best(self) -> None:
        """Let `checkpoints/best` lead to the right one of those that are there."""
        if self._best is not None and (best := self._best.point()):
            self.progress.note(
                f"the best checkpoint is step {best.step}: pass@1 {100 * best.pass_at_1:.1f} at version {best.version}"
            )

    def _watch_over(self, step: int) -> None:
        """Say what the watchers see, once each; in the metrics it is the step since which it holds."""
        found = watch(self.steps, self._samples, held_out(self.cluster.files.directory))
        for finding in found:
            if finding.name not in self._told:
                self._told.add(finding.name)
                self.progress.warn(finding.line)
        if found:
            self._sink.write("watch", {finding.name: float(finding.since) for finding in found}, step)

    # --- stop -----------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """The learner saves its checkpoint while the actors wind down. Past its deadline a part is killed with Ray."""
        self._hosts.close()
        for task in (*self._restarting, *(t for name, t in self._asking.items() if name != "steps")):
            task.cancel()  # but not while steps are on their way, which are handed over once
        running = [part for part in self.crew.parts if part.ending is not None and not part.ending.done()]
        self.progress.note("stopping")
        await asyncio.gather(
            self._stop_learners([part for part in running if part.role == "learner"]),
            within(_PART_STOP_S, *(part.stop() for part in running if part.role == "actors")),
        )
        await self._collect_steps()
        if self.held_out:
            await self._collect_evaluations(at_the_end=True)
        await self._take_account()
        rest = [part for part in running if part.role in ("generator", "replay")]
        await within(_PART_STOP_S, *(part.stop() for part in rest))
        for part in self.crew.parts:
            if part.ending is not None:
                part.ending.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await part.ending

    async def _stop_learners(self, running: list[Part]) -> None:
        """Until the step in hand is done and saved, `stop_timeout_s` at most. A second signal ends the wait, and so
        does a lost rank: without it the others can save nothing."""
        if not running:
            return
        lost = any(part.failed for part in self.crew.learners)
        stopping = asyncio.gather(*(part.stop() for part in running))
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

    # --- errors ---------------------------------------------------------------------------------------------------

    @property
    def _too_often(self) -> str:
        return f"and was started again restarts_per_hour ({self.settings.restarts_per_hour}) times within the hour"
