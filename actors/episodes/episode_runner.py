"""One lease, run through: sandbox -> agent -> patch -> judgement in a fresh sandbox -> trajectory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.agent.episode import Assignment, Episode, Limits, Step
from actors.episodes.board import Board, State
from actors.episodes.episode_journal import EpisodeJournal, Judged, Ready, Taken
from actors.episodes.judgements import Judgements
from actors.episodes.players import make_player
from actors.episodes.zeros import zero_reason
from actors.gateway.server import Exchange
from actors.policy import Policy
from protocol.chance import draw
from protocol.config import Settings
from protocol.errors import DeadlineError, GradingError, LonghaulError, SandboxError, TaskError
from protocol.messages import Lease, Trajectory, Turn, ZeroReason
from sandbox.backends import make_limits, user_paths
from sandbox.base import Backend, Sandbox, Snapshot
from sandbox.judgement.checkout import prepare
from sandbox.judgement.grading import Verdict, grade, take_patch
from sandbox.judgement.review import marks_of
from sandbox.patches import Patch
from sandbox.tasks.sources import sandbox_spec
from sandbox.tasks.task import Task

log = logging.getLogger(__name__)

_OVERLONG = frozenset({"max_turns", "context", "wall_time"})
_NOTHING_CHANGED = Verdict(resolved=False, reason="the agent changed nothing")


class Attempt(Struct, frozen=True, kw_only=True):
    """What one lease gave, for the replay buffer (`trajectory`) and for people (the rest)."""

    trajectory: Trajectory
    opening: list[dict[str, str]]  # messages before the first turn
    steps: list[Step]
    patch: Patch
    verdict: Verdict
    marks: list[str] = []  # why people should look at it, if it was rewarded
    source: str = ""  # of the task
    repository: str = ""
    judged_from: float = 0.0  # seconds since the epoch: its change was taken


class EpisodeRunner:
    """Runs leases, many at once. Sandbox starts and gradings at the same time are bounded by the settings.

    Args:
        run: name of the run, which labels its sandboxes.
        on_exchange: hears of every request of agents from outside.

    Attributes:
        judgements: what was judged already.
    """

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        backend: Backend,
        tasks: Mapping[str, Task],
        tokenizer: ChatTokenizer,
        board: Board,
        run: str,
        on_exchange: Callable[[Exchange], None] = lambda exchange: None,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._tasks = tasks
        self._board = board
        self._run = run
        self._cache_dir: Path = settings.tasks.cache_dir.expanduser()
        self._player = make_player(settings, policy, tokenizer, board.enter, on_exchange)
        self._starts = asyncio.Semaphore(settings.sandbox.max_starts)
        self._gradings = asyncio.Semaphore(settings.sandbox.max_grading)
        self._expected: list[str] = []  # images
        self.judgements = Judgements()
        self._num_opinions = self._num_disagreements = self._num_starved = 0

    async def start(self) -> None:
        """Make ready whoever plays the episodes. Raises `ConfigError` where that cannot be."""
        await self._player.start()

    async def stop(self) -> None:
        """Let go of what `start` opened."""
        await self._player.stop()

    def status(self) -> dict[str, float]:
        """Metrics by name."""
        return self._player.status() | {
            "verdicts_shared": float(self.judgements.num_shared),
            "test_runs_starved": float(self._num_starved),
            "second_opinions": float(self._num_opinions),
            "second_opinion_disagreements": float(self._num_disagreements),
        }

    def expect(self, task_ids: Iterable[str]) -> None:
        """Episodes of these tasks are to come: their images may be made ready."""
        images = [task.image for name in task_ids if (task := self._tasks.get(name)) is not None and task.image]
        if images != self._expected:
            self._expected = images
            self._backend.expect(images)

    async def run(self, lease: Lease, journal: EpisodeJournal | None = None) -> Attempt:
        """Run `lease` through, from where its journal ends.

        Raises a `LonghaulError` when the infrastructure, not the agent, failed.
        """
        journal = journal or EpisodeJournal.unwritten(lease)
        task = self._tasks.get(lease.task_id)
        if task is None:
            raise TaskError(f"lease {lease.lease_id} names task {lease.task_id!r}, which is not loaded", kind="unknown")
        limits = Limits(
            max_turns=lease.max_turns, max_context=lease.max_context, wall_time_s=self._settings.episode.wall_time_s
        )
        assigned = Assignment(
            issue=task.issue,
            episode_id=lease.episode_id,
            version=lease.version,
            sampling=lease.sampling,
            limits=limits,
            journal=journal,
        )
        if journal.patch is None:
            async with self._sandbox(task, journal) as sandbox:
                if sandbox.spec.snapshots is not None:
                    assigned = msgspec.structs.replace(assigned, save=partial(self._save, sandbox, journal))
                episode = await self._player.run(assigned, sandbox)
                if not episode.steps:
                    raise _no_turn(task, lease, episode)
                self._board.enter(lease.episode_id, "executing")
                patch = await take_patch(sandbox, task)
                journal.add(Taken(patch=patch))
        else:
            patch = journal.patch
            episode = self._player.recall(assigned)
        verdict, judged_from = journal.verdict, time.time()
        if verdict is None:
            verdict = await self._judge(task, lease, patch)
            journal.add(Judged(verdict=verdict))
        return Attempt(
            trajectory=to_trajectory(lease, episode, verdict, journal.started_at, zero_reason(verdict, patch)),
            opening=self._player.opening(task.issue),
            steps=episode.steps,
            patch=patch,
            verdict=verdict,
            marks=_marks(task, patch, verdict),
            source=task.source,
            repository=task.repository,
            judged_from=judged_from,
        )

    @contextlib.asynccontextmanager
    async def _sandbox(self, task: Task, journal: EpisodeJournal) -> AsyncIterator[Sandbox]:
        """The episode's sandbox, prepared, which is gone afterwards."""
        async with await self._adopted(task, journal) or await self._fresh(task, journal) as sandbox:
            if not journal.is_ready:
                await prepare(sandbox, task)
                journal.add(Ready())
            yield sandbox

    async def _adopted(self, task: Task, journal: EpisodeJournal) -> Sandbox | None:
        """The one that the process that began the episode has left; None: it had not come so far."""
        if not journal.is_taken_over and not journal.has_lost_sandbox:
            return None
        left = await self._backend.adopt(journal.lease.lease_id) if self._player.goes_on else None
        if journal.has_lost_sandbox and left is not None:  # it is further than what will be gone on from
            await left.close()
            left = None
        survives = self._settings.sandbox.survive_restart
        if left is None and (journal.has_lost_sandbox or (journal.is_ready and survives)):
            return await self._as_saved(task, journal)
        if journal.is_ready and left is None:
            lost = f"the sandbox of episode {journal.lease.episode_id} is gone with the process that worked in it"
            raise SandboxError(lost, kind="lost")
        if left is not None and not journal.is_ready:
            await left.close()
            return None
        return left

    async def _as_saved(self, task: Task, journal: EpisodeJournal) -> Sandbox | None:
        """A sandbox with the files of the last snapshot; None: there is none that can be used, and it begins anew."""
        snapshot = await asyncio.to_thread(journal.go_back)
        if snapshot is None:
            return None
        log.info("episode %s goes on from its snapshot behind turn %d", journal.lease.episode_id, journal.num_turns)
        try:
            return await self._fresh(task, journal, snapshot)
        except SandboxError as error:
            if error.kind != "snapshot":
                raise
            log.warning("episode %s begins again: %s", journal.lease.episode_id, error)
        await asyncio.to_thread(journal.begin_again)
        return None

    async def _save(self, sandbox: Sandbox, journal: EpisodeJournal) -> None:
        """Take a snapshot in place of the last. One that cannot be had costs turns after a loss, not the episode."""
        try:
            former = journal.saved(await sandbox.snapshot())
            if former is not None and former != sandbox.spec.from_snapshot:  # else its files are below the sandbox's
                await self._backend.delete_snapshot(former)
        except SandboxError as error:
            log.warning("episode %s is not saved: %s", journal.lease.episode_id, error)

    async def _fresh(self, task: Task, journal: EpisodeJournal, snapshot: Snapshot | None = None) -> Sandbox:
        lease = journal.lease
        async with self._turn_for(lease, self._starts, "starting"):
            settings = self._settings.sandbox_of(task.source)
            limits = make_limits(settings)
            spec = await asyncio.to_thread(sandbox_spec, task, self._run, lease.lease_id, limits, self._cache_dir)
            is_saved = self._settings.sandbox.survive_restart and journal.is_written and spec.image is None
            spec = msgspec.structs.replace(
                spec,
                read_only_binds=spec.read_only_binds | self._player.binds,
                user_paths=user_paths(settings),
                kept=self._player.goes_on,
                from_snapshot=snapshot,
                snapshots=journal.files.absolute() if is_saved else None,
            )
            return await self._backend.create(spec)

    async def _judge(self, task: Task, lease: Lease, patch: Patch) -> Verdict:
        if not patch.changes and not patch.problem:
            return _NOTHING_CHANGED
        if not self._settings.sandbox.share_verdicts or patch.problem:
            return await self._grade(task, lease, patch)
        self._board.enter(lease.episode_id, "queued")
        return await self.judgements.of(task, patch, lambda: self._grade(task, lease, patch))

    async def _grade(self, task: Task, lease: Lease, patch: Patch) -> Verdict:
        async with self._turn_for(lease, self._gradings, "grading"):
            verdict = await self._grade_once(task, lease, patch)
            if verdict.resolved and draw(lease.episode_id, "second opinion") < self._settings.grading.second_opinion:
                verdict = await self._ask_again(task, lease, patch, verdict)
            return verdict

    async def _ask_again(self, task: Task, lease: Lease, patch: Patch, verdict: Verdict) -> Verdict:
        """The verdict, with what a second opinion has against it. One that cannot be had says nothing."""
        try:
            second = await self._grade_once(task, lease, patch, another_way=True)
        except LonghaulError as error:
            log.warning("episode %s: no second opinion: %s", lease.episode_id, error)
            return verdict
        self._num_opinions += 1
        if second.resolved:
            return verdict
        self._num_disagreements += 1
        log.warning("episode %s was rewarded, a second opinion says: %s", lease.episode_id, second.reason)
        return msgspec.structs.replace(verdict, disputed=second.reason)

    async def _grade_once(self, task: Task, lease: Lease, patch: Patch, *, another_way: bool = False) -> Verdict:
        try:
            verdict = await grade(
                self._backend,
                task,
                patch,
                run=self._run,
                lease=lease.lease_id,
                limits=make_limits(self._settings.sandbox_of(task.source)),
                cache_dir=self._cache_dir,
                timeout_s=self._settings.sandbox.grading_timeout_s,
                another_way=another_way,
            )
        except GradingError as error:
            self._num_starved += 2 * (error.kind == "starved")  # a run, and the one that was to make up for it
            raise
        self._num_starved += verdict.starved
        return verdict

    @contextlib.asynccontextmanager
    async def _turn_for(self, lease: Lease, slots: asyncio.Semaphore, state: State) -> AsyncIterator[None]:
        self._board.enter(lease.episode_id, "queued")
        async with slots:
            self._board.enter(lease.episode_id, state)
            yield


def _marks(task: Task, patch: Patch, verdict: Verdict) -> list[str]:
    if not verdict.resolved:
        return []
    disputed = [f"a second opinion disagrees: {verdict.disputed}"] if verdict.disputed else []
    unguarded = ["nothing vouches for the log: code under test can write it"] if verdict.unguarded else []
    return [*disputed, *unguarded, *marks_of(task, patch)]


def _no_turn(task: Task, lease: Lease, episode: Episode) -> LonghaulError:
    """An episode in which the agent never got to act says nothing of the agent."""
    if episode.end_reason == "context":
        need = f"its prompt has {len(episode.history)} tokens, the context at most {lease.max_context}"
        return TaskError(f"task {task.task_id!r} does not fit: {need}; raise model.max_context", kind="too_long")
    return DeadlineError(f"episode {lease.episode_id} got no model turn within episode.wall_time_s", kind="wall_time")


def to_trajectory(
    lease: Lease, episode: Episode, verdict: Verdict, started_at: float, zero_because: ZeroReason = ""
) -> Trajectory:
    """The message that trains: the episode's tokens with the judgement and the lease it was run under."""
    history = episode.history
    return Trajectory(
        episode_id=lease.episode_id,
        lease_id=lease.lease_id,
        task_id=lease.task_id,
        group_id=lease.group_id,
        member=lease.member,
        attempt=lease.attempt,
        resolved=verdict.resolved,
        reward=verdict.reward,
        end_reason=episode.end_reason,
        turns=[_to_turn(step) for step in episode.steps],
        token_ids=history.token_ids,
        loss_mask=history.loss_mask,
        logprobs=history.logprobs,
        versions=history.versions,
        started_at=started_at,
        finished_at=time.time(),
        tampered=verdict.tampered,
        overlong=episode.end_reason in _OVERLONG,
        segment_starts=history.segment_starts,
        segment_parents=history.segment_parents,
        drift={cause: count for cause, count in episode.drift.items() if count},
        zero_because=zero_because,
        experts=history.experts,
    )


def _to_turn(step: Step) -> Turn:
    return Turn(
        start=step.start,
        end=step.end,
        format_error=step.format_error,
        cached_version=step.cached_version,
        generate_s=step.generate_s,
        execute_s=step.execute_s,
    )
