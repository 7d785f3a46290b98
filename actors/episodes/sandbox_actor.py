"""Hosts many concurrent episodes in one asyncio process: lease -> episode -> submit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from actors.agent.chat import ChatTokenizer
from actors.episodes.board import Board
from actors.episodes.episode_journal import EpisodeJournal, read_journals, recipe_of
from actors.episodes.episode_runner import Attempt, EpisodeRunner
from actors.episodes.host_load import host_load
from actors.episodes.records import HeldOutRecords, Records
from actors.episodes.replay_client import Backoff, ReplayClient, jittered
from actors.episodes.review import ReviewLog
from actors.policy import Policy
from protocol.config import Settings
from protocol.errors import DeadlineError, LonghaulError, SandboxError, WireError
from protocol.messages import Lease
from protocol.sockets import Keys
from sandbox.base import Backend
from sandbox.tasks.task import Task

log = logging.getLogger(__name__)

_LEAST_PAUSE_S = 0.05
_MOST_LOSSES = 3  # of one episode's sandbox, with each of which it goes back to its last snapshot


class SandboxActor:
    """One process's share of the run's episodes.

    Every lease ends as a submitted trajectory, a reported failure, or (when the buffer says that the lease is no longer
    ours) not at all. A failure of one episode harms no other. What an earlier process of this name left half done
    goes on here: its leases are ours, its episodes' journals say how far they are, and a keeper has their sandboxes.

    Args:
        num_episodes: episodes that may run at once here.
        tasks: by task id; leases name them.
        run: name of the run, unique on this host: it labels the sandboxes.
        request_timeout_s: how long one request to the replay buffer waits for its answer before it is sent again.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        num_episodes: int,
        replay_endpoint: str,
        policy: Policy,
        backend: Backend,
        tasks: Mapping[str, Task],
        tokenizer: ChatTokenizer,
        keys: Keys | None,
        run_dir: Path,
        *,
        run: str = "run",
        request_timeout_s: float = 10.0,
    ) -> None:
        self._settings = settings
        self._num_episodes = num_episodes
        self._board = Board()
        self._replay = ReplayClient(replay_endpoint, name, keys, request_timeout_s=request_timeout_s)
        self._runner = EpisodeRunner(settings, policy, backend, tasks, tokenizer, self._board, run)
        evaluates = settings.phase == "eval"
        self._records = Records(
            run_dir,
            name,
            share=1.0 if evaluates else settings.actors.trajectory_log_share,
            model=(settings.eval.model or settings.model.path) if evaluates else None,
        )
        self._held_out = HeldOutRecords(run_dir, name)
        self._review = ReviewLog(run_dir, name)
        self._journals = run_dir / "episodes" / name
        self._recipe = recipe_of(settings)
        self._running: dict[str, asyncio.Task[None]] = {}  # by lease id
        self._delivering: set[str] = set()
        self._clearing: set[asyncio.Task[None]] = set()
        self._rest = Backoff()  # of a place whose episode failed: a broken host must not use up the attempts of all
        self._changed = asyncio.Event()  # an episode ended, or `stop` was called
        self._begun = self._stopping = self._draining = False
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Make ready whoever plays the episodes; before `run`. Raises `ConfigError`."""
        await self._runner.start()

    async def run(self) -> None:
        """Run episodes until the buffer needs no more; first those that were begun before.

        Waits for leases while there is room (asking again after the buffer's hint, or with growing pauses while it
        cannot be reached), and for an episode to end while there is none. `stop` unblocks it.
        """
        self._begun = True
        heartbeats = asyncio.create_task(self._send_heartbeats(), name="heartbeats")
        try:
            await self._take_up()
            await self._take_leases()
        finally:
            heartbeats.cancel()
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(heartbeats, *self._running.values(), return_exceptions=True)
            if self._clearing:
                await asyncio.wait(self._clearing)
            await self._close()
            self._ended.set()

    def status(self) -> dict[str, float]:
        """Metrics by name."""
        return (
            self._board.metrics()
            | host_load()
            | self._runner.status()
            | {"review_marked": float(self._review.num_marked)}
        )

    def drain(self) -> None:
        """Take no more leases; `run` ends with the last of the running episodes."""
        self._draining = True
        self._changed.set()

    async def stop(self) -> None:
        """End all episodes and `run`; leases that are open run out. Waits for sandboxes to be closed."""
        self._stopping = True
        self._changed.set()
        if self._begun:
            await self._ended.wait()
        else:
            await self._close()

    async def _close(self) -> None:
        await self._runner.stop()
        await self._replay.close()
        self._records.close()
        self._held_out.close()
        self._review.close()
        with contextlib.suppress(OSError):  # an episode is left in it, or it was never made
            self._journals.rmdir()
            self._journals.parent.rmdir()

    async def _take_up(self) -> None:
        """Go on with the episodes that an earlier process of this name left, as far as their leases are still ours."""
        self._journals.mkdir(parents=True, exist_ok=True)
        left = await asyncio.to_thread(lambda: list(read_journals(self._journals, self._recipe)))
        unreachable = Backoff()
        while left and not self._stopping:
            try:
                unknown = await self._replay.heartbeat([journal.lease.lease_id for journal in left])
            except (DeadlineError, WireError) as error:
                log.warning("no word on the leases that were left: %s", error)
                await self._wait_for_leases(unreachable.next())
                continue
            for journal in left:
                if journal.lease.lease_id in unknown:
                    self._forget(journal)
                else:
                    log.info("episode %s goes on behind turn %d", journal.lease.episode_id, journal.num_turns)
                    self._board.went_on()
                    self._begin(journal)
            return

    async def _take_leases(self) -> None:
        unreachable = Backoff()
        while not self._stopping and (self._running or not self._draining):
            room = 0 if self._draining else self._num_episodes - len(self._running)
            if room == 0:
                await self._wait_for_change(None)
                continue
            try:
                reply = await self._replay.lease(room)
            except (DeadlineError, WireError) as error:
                log.warning("no leases: %s", error)
                await self._wait_for_leases(unreachable.next())
                continue
            unreachable.reset()
            self._runner.expect(reply.soon)
            for lease in reply.leases:
                if lease.lease_id not in self._running:  # else given twice after a lost answer
                    self._begin(EpisodeJournal.begin(self._journals, lease, time.time(), self._recipe))
            if reply.done:
                if not self._running:
                    return
                await self._wait_for_change(None)
            elif len(reply.leases) < room:
                await self._wait_for_leases(max(jittered(reply.retry_after_s), _LEAST_PAUSE_S))

    async def _wait_for_leases(self, pause_s: float) -> None:
        began = time.monotonic()
        while not (self._stopping or self._draining) and (left := began + pause_s - time.monotonic()) > 0:
            await self._wait_for_change(left)
        self._board.replay_waits_s += time.monotonic() - began

    async def _wait_for_change(self, timeout_s: float | None) -> None:
        """Until an episode ends or `stop` is called, at most `timeout_s` (None: an episode has its own)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        self._changed.clear()  # only now: what happened before the wait counts, too

    def _begin(self, journal: EpisodeJournal) -> None:
        lease = journal.lease
        task = asyncio.create_task(self._host(journal), name=f"episode {lease.episode_id}")
        self._running[lease.lease_id] = task
        task.add_done_callback(lambda ended: self._end(journal, is_cut=ended.cancelled()))

    def _end(self, journal: EpisodeJournal, *, is_cut: bool) -> None:
        lease = journal.lease
        if is_cut and self._stopping and self._settings.sandbox.survive_restart:
            journal.leave()
        else:
            self._forget(journal)
        del self._running[lease.lease_id]
        self._delivering.discard(lease.lease_id)
        self._board.leave(lease.episode_id)
        self._changed.set()

    def _forget(self, journal: EpisodeJournal) -> None:
        """Its files may be many, and an agent's: they are removed beside the loop."""
        journal.discard()
        if journal.files.exists():
            clearing = asyncio.create_task(asyncio.to_thread(shutil.rmtree, journal.files, ignore_errors=True))
            self._clearing.add(clearing)
            clearing.add_done_callback(self._clearing.discard)

    async def _host(self, journal: EpisodeJournal) -> None:
        """One episode with its delivery: the boundary at which every error becomes a record."""
        lease = journal.lease
        try:
            attempt = await self._run(journal)
            await self._submit(lease, attempt)
            self._rest.reset()
        except LonghaulError as error:
            await self._report(lease, error)
        except Exception as error:
            log.exception("episode %s hit a bug", lease.episode_id)
            await self._report(lease, LonghaulError(f"{type(error).__name__}: {error}", kind="bug"))

    async def _run(self, journal: EpisodeJournal) -> Attempt:
        """Through; from its last snapshot, where its sandbox is lost meanwhile and there is one."""
        for _ in range(_MOST_LOSSES):
            try:
                return await self._runner.run(journal.lease, journal)
            except SandboxError as error:
                if not journal.is_saved or journal.patch is not None:
                    raise
                log.warning("episode %s lost its sandbox: %s", journal.lease.episode_id, error)
                journal.has_lost_sandbox = True
        return await self._runner.run(journal.lease, journal)

    async def _submit(self, lease: Lease, attempt: Attempt) -> None:
        self._board.enter(lease.episode_id, "submitting")
        self._delivering.add(lease.lease_id)
        status = await self._replay.submit(attempt.trajectory)
        if status == "late":
            log.warning("episode %s came late: lease %s had run out", lease.episode_id, lease.lease_id)
            self._board.dropped()
            return
        # a duplicate may be our own, sent again because the first answer was lost
        if lease.evaluates >= 0:
            self._board.scored()
            self._held_out.write(lease.evaluates, attempt)
            return
        self._board.finished(attempt.trajectory)
        self._records.write(attempt)
        self._review.write(attempt)

    async def _report(self, lease: Lease, error: LonghaulError) -> None:
        log.warning("episode %s failed: %s: %s", lease.episode_id, error.label, error)
        self._board.failed(error)
        self._delivering.add(lease.lease_id)
        try:
            await self._replay.fail(lease.lease_id, error)
        except LonghaulError as refusal:  # the lease runs out instead
            log.warning("the failure of episode %s could not be reported: %s", lease.episode_id, refusal)
        self._board.leave(lease.episode_id)
        await asyncio.sleep(self._rest.next())

    async def _send_heartbeats(self) -> None:
        """Extend the running leases every `heartbeat_s`, and drop episodes whose lease is lost. Waits for the clock;
        cancelling unblocks it."""
        while True:
            await asyncio.sleep(self._settings.actors.heartbeat_s)
            if not self._running:
                continue
            try:
                unknown = await self._replay.heartbeat(list(self._running))
            except (DeadlineError, WireError) as error:
                log.warning("heartbeat: %s", error)
                continue
            for lease_id in unknown:
                # what is being delivered is finished work: the buffer itself says whether it is late
                if lease_id in self._running and lease_id not in self._delivering:
                    log.warning("lease %s is lost: its episode is dropped", lease_id)
                    self._board.dropped()
                    self._running[lease_id].cancel()
