"""One lease, run through: sandbox -> agent -> patch -> judgement in a fresh sandbox -> trajectory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
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
from protocol.errors import DeadlineError, LonghaulError, SandboxError, TaskError
from protocol.messages import Lease, Trajectory, Turn, ZeroReason
from sandbox.backends import make_limits, user_paths
from sandbox.base import Backend, Sandbox
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
        self.judgements = Judgements()
        self._num_opinions = self._num_disagreements = 0

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
            "second_opinions": float(self._num_opinions),
            "second_opinion_disagreements": float(self._num_disagreements),
        }

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
                episode = await self._player.run(assigned, sandbox)
                if not episode.steps:
                    raise _no_turn(task, lease, episode)
                self._board.enter(lease.episode_id, "executing")
                patch = await take_patch(sandbox, task)
                journal.add(Taken(patch=patch))
        else:
            patch = journal.patch
            episode = self._player.recall(assigned)
        verdict = journal.verdict
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
        )

    @contextlib.asynccontextmanager
    async def _sandbox(self, task: Task, journal: EpisodeJournal) -> AsyncIterator[Sandbox]:
        """The episode's sandbox, prepared, which is gone afterwards."""
        async with await self._adopted(journal) or await self._fresh(task, journal.lease) as sandbox:
            if not journal.is_ready:
                await prepare(sandbox, task)
                journal.add(Ready())
            yield sandbox

    async def _adopted(self, journal: EpisodeJournal) -> Sandbox | None:
        """The one that the process that began the episode has left; None: it had not come so far."""
        if not journal.is_taken_over:
            return None
        left = await self._backend.adopt(journal.lease.lease_id) if self._player.goes_on else None
        if journal.is_ready and left is None:
            lost = f"the sandbox of episode {journal.lease.episode_id} is gone with the process that worked in it"
            raise SandboxError(lost, kind="lost")
        if left is not None and not journal.is_ready:
            await left.close()
            return None
        return left

    async def _fresh(self, task: Task, lease: Lease) -> Sandbox:
        async with self._turn_for(lease, self._starts, "starting"):
            settings = self._settings.sandbox_of(task.source)
            limits = make_limits(settings)
            spec = await asyncio.to_thread(sandbox_spec, task, self._run, lease.lease_id, limits, self._cache_dir)
            shown = spec.read_only_binds | self._player.binds
            spec = msgspec.structs.replace(
                spec, read_only_binds=shown, user_paths=user_paths(settings), kept=self._player.goes_on
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
        return await grade(
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
