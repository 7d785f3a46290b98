"""The replay buffer as a process: ZMQ on one side, the journal on the other, `Replay` in between."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from learner.held_out import Evaluation
from learner.replay import events
from learner.replay.journal.journal import Journal
from learner.replay.journal.reader import EVENTS, SNAPSHOT
from learner.replay.machine import Replay
from learner.replay.service import pass_rates, task_states
from learner.replay.service.account import Account, News, account, news
from learner.replay.service.batches import load_batch, positions_of
from learner.replay.service.clock import SteadyClock
from learner.replay.service.speed import Speed
from learner.replay.service.status import measure
from learner.replay.state import FormedBatch, State
from protocol.config import Settings
from protocol.errors import JournalError, ReplayError
from protocol.messages import (
    Batch,
    CheckpointMark,
    LeaseReply,
    Message,
    Refused,
    ReplayStatus,
    ReplayStatusRequest,
    Submit,
    SubmitReply,
    TaskRef,
)
from protocol.sockets import Keys, Peer, Server
from protocol.wire import Codec

_TICK_S = 0.25
_RETRY_DISK_S = 1.0
_SYNC_S = 0.05
_LOW_SPACE_BYTES = 64 << 20
_SNAPSHOT_BYTES = 16 << 30


class _Answer(NamedTuple):
    """A reply that leaves once the journal is written up to `after`."""

    after: int
    peer: Peer
    reply: Message | FormedBatch
    received: float


class ReplayServer:
    """Serves actors, the learner and the publisher of weights from one `Replay`.

    Args:
        settings: of the run.
        tasks: the tasks of the run, in a fixed order.
        endpoint: to listen on (`ipc://` or `tcp://`, see `protocol.sockets`).
        run_dir: the journal lives in its `journal` directory and is read back from there.
        keys: CURVE keys, for endpoints beyond loopback.
        snapshot_bytes: the journal is compacted when it has grown by so much, checkpoint or not.
        held_out: tasks that are scored while the run trains, in a fixed order.
        now: seconds by which leases end, never going back; else a clock that no step of the system's moves.
    """

    def __init__(
        self,
        settings: Settings,
        tasks: Sequence[TaskRef],
        endpoint: str,
        run_dir: Path,
        keys: Keys | None = None,
        snapshot_bytes: int = _SNAPSHOT_BYTES,
        held_out: Sequence[TaskRef] = (),
        now: Callable[[], float] | None = None,
    ) -> None:
        self._now = now or SteadyClock()
        self._snapshot_bytes = snapshot_bytes
        self._settings = settings
        self._tasks, self._held_out = tasks, held_out
        self._endpoint = endpoint
        self._keys = keys
        self._directory = run_dir / "journal"
        self._run_dir = run_dir
        self._rates_file = run_dir / "pass_rates.json"
        self._told_tasks_at = time.monotonic()
        self._answers: deque[_Answer] = deque()
        self._something_queued = asyncio.Event()
        self._snapshot = -1  # position of one that is not written yet
        self._live: list[int] = []  # what was needed when it was taken
        self._compacted = 0  # journal's end at that time
        self._refused: dict[str, int] = {}
        self._codec = Codec()
        self._speed = Speed(time.monotonic())
        self._server: Server | None = None
        self._running: asyncio.Task[None] | None = None
        self.num_lost_events = 0  # that could not be folded behind a damaged record
        self.replay: Replay
        self.journal: Journal

    async def start(self) -> str:
        """Read the journal back, if there is one, and listen; the endpoint that was bound.

        Raises:
            JournalError: the journal is damaged or in use.
            ConfigError: the endpoint cannot be bound, or the earlier stage's pass rates are missing or none.
        """
        self.journal = Journal(self._directory, self._settings.replay.fsync)
        try:
            self.replay = await asyncio.to_thread(self._recover)
            earlier = self._settings.replay.pass_rates
            rates = pass_rates.read(earlier) if earlier else None
            self._journal_events(self.replay.start(self._now(), rates), ())
            self.journal.commit()
            self._server = Server(self._endpoint, self._keys)
        except BaseException:
            self.journal.close()
            raise
        gc.collect()
        gc.freeze()  # imports and what was read back stay: collections look at new things only
        return self._server.endpoint

    async def run(self) -> None:
        """Serve until `stop`. Waits for messages (unblocked by any peer), for the journal to be written (unblocked by
        the disk; a full one is retried every second) and for the clock that expires leases.

        Raises:
            JournalError: the disk failed, or gave back something else than was written.
        """
        assert self._server is not None, "start() comes before run()"
        self._running = asyncio.current_task()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._serve(), name="replay: messages")
                group.create_task(self._commit(group), name="replay: journal")
                group.create_task(self._tick(), name="replay: clock")
                if self._settings.replay.fsync == "interval":
                    group.create_task(self._sync(), name="replay: fsync")
        except asyncio.CancelledError:
            if self._server is not None:
                raise
        finally:
            self._running = None

    async def stop(self) -> None:
        """Stop serving and close the journal. Answers that were not sent are not: their senders ask again."""
        server, self._server = self._server, None
        running = self._running
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running], timeout=10)
        if server is not None:
            server.close()
            self.journal.close()
            pass_rates.write(self._rates_file, self.replay.state.rates)
            self._tell_tasks()

    def _tell_tasks(self) -> None:
        """How the tasks stand, for people; a disk that takes no more costs that."""
        self._told_tasks_at = time.monotonic()
        with contextlib.suppress(OSError):
            task_states.write(self._run_dir, self.replay)

    def status(self) -> dict[str, float]:
        """Counters and gauges, by metric name."""
        if time.monotonic() - self._told_tasks_at > task_states.EVERY_S:
            self._tell_tasks()
        metrics = measure(self.replay)
        refused = {f"refused.{kind}": float(count) for kind, count in self._refused.items()}
        malformed = float(self._server.num_refused) if self._server else 0.0
        own = {
            "refused.wire": malformed,
            "unanswered": float(len(self._answers)),
            "journal_bytes": float(self.journal.end),
            "journal_lost_events": float(self.num_lost_events),
        }
        return metrics | refused | own | self._speed.measure(time.monotonic())

    def news(self) -> News:
        """What is wrong now."""
        return news(self.replay, self._now())

    def account(self) -> Account:
        """What the infrastructure did to the run's episodes."""
        return account(self.replay)

    def evaluations(self, known: Collection[int]) -> list[Evaluation]:
        """Evaluations of held-out tasks, but those of the `known` versions; the newest may not be over yet."""
        return [each for version, each in self.replay.state.held_out.evaluations.items() if version not in known]

    def raise_fence(self, part: str, generation: int) -> None:
        """That part is being started again: no older process of it is heard from now on."""
        if self._server is not None:
            self._server.fence.raise_to(part, generation)

    def report_pressure(self, source: str, levels: dict[str, float]) -> None:
        """As a `Pressure` message does: how full something is that episodes fill, 1 being the most it should be."""
        for name, level in levels.items():
            self.replay.concurrency.report(f"{source}.{name}", level, self._now())

    # --- loops ------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Answer messages. Waits for the next one; closing the socket unblocks it."""
        assert self._server is not None
        async for peer, message in self._server:
            try:
                if isinstance(message, ReplayStatusRequest):
                    await self._send(peer, ReplayStatus(metrics=self.status(), waiting_for=self.replay.waiting_for))
                else:
                    await self._handle(peer, message)
            except ReplayError as error:
                self._refused[error.label] = self._refused.get(error.label, 0) + 1
                await self._send(peer, Refused(kind=error.label, reason=str(error)))

    async def _handle(self, peer: Peer, message: Message) -> None:
        received = time.monotonic()
        outcome = self.replay.handle(message, self._now(), self.journal.end)
        payload = self._codec.encode(message) if isinstance(message, Submit) and outcome.events else ()
        self._journal_events(outcome.events, payload)
        if isinstance(message, CheckpointMark):
            self._compact()
        if outcome.events or isinstance(outcome.reply, SubmitReply | FormedBatch):
            self._answers.append(_Answer(self.journal.end, peer, outcome.reply, received))
            self._something_queued.set()
        else:
            await self._answer(peer, outcome.reply, received)

    async def _commit(self, group: asyncio.TaskGroup) -> None:
        """Write the journal, then send what waited for it. Waits for a message that changed something.

        Batches are read and sent by tasks of their own: they are long, and leases do not wait behind them.
        """
        while True:
            await self._something_queued.wait()
            self._something_queued.clear()
            try:
                written = await asyncio.to_thread(self.journal.commit)
            except JournalError as error:
                if error.kind != "disk_full":
                    raise
                self.replay.paused = str(error)
                self._something_queued.set()
                await asyncio.sleep(_RETRY_DISK_S)
                continue
            if 0 <= self._snapshot < written:
                await asyncio.to_thread(self.journal.drop_before, self._snapshot, self._live)
                self._snapshot = -1
            while self._answers and self._answers[0].after <= written:
                _, peer, reply, received = self._answers.popleft()
                if isinstance(reply, FormedBatch):
                    group.create_task(self._send_batch(peer, reply), name=f"replay: batch {reply.step}")
                else:
                    await self._answer(peer, reply, received)

    async def _tick(self) -> None:
        """Expire leases, watch the disk and the journal's size. Waits for the clock."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._watch_disk()
            if self._snapshot < 0 and self.journal.end - self._compacted >= self._snapshot_bytes:
                self._compact()
                self._something_queued.set()
            expired = self.replay.tick(self._now())
            if expired:
                self._journal_events(expired, ())
                self._something_queued.set()

    def _watch_disk(self) -> None:
        """Nothing is leased while the disk is about to be full: what runs already shall still fit."""
        free = shutil.disk_usage(self._directory).free
        if free < _LOW_SPACE_BYTES:
            self.replay.paused = f"disk space for the journal: {free >> 20} MiB are left in {self._directory}"
        elif not self.journal.blocked:
            self.replay.paused = ""

    async def _sync(self) -> None:
        """Force the journal to disk; acknowledgements do not wait for it. Waits for the clock."""
        while True:
            await asyncio.sleep(_SYNC_S)
            await asyncio.to_thread(self.journal.sync)

    async def _send_batch(self, peer: Peer, batch: FormedBatch) -> None:
        await self._send(peer, await asyncio.to_thread(self._load_batch, batch))

    async def _answer(self, peer: Peer, reply: Message, received: float) -> None:
        await self._send(peer, reply)
        if isinstance(reply, LeaseReply):
            self._speed.lease(received, time.monotonic())
        elif isinstance(reply, SubmitReply):
            self._speed.submission(time.monotonic())

    async def _send(self, peer: Peer, reply: Message) -> None:
        if self._server is not None:
            await self._server.send(peer, reply)

    # --- journal --------------------------------------------------------------------------------------------------

    def _journal_events(self, happened: Sequence[events.Event], payload: Sequence[bytes | memoryview]) -> None:
        if happened:
            self.journal.append([events.encode(happened), *payload])

    def _recover(self) -> Replay:
        replay = Replay(self._settings, self._tasks, held_out=self._held_out)
        skip_corrupt = self._settings.replay.skip_corrupt
        start = None
        for record in self.journal.recover(skip_corrupt):
            start = record.position if start is None else start
            if record.kind == SNAPSHOT:
                state = msgspec.msgpack.decode(record.frames[0], type=State)
                replay = Replay(self._settings, self._tasks, state, self._held_out)
                continue
            assert record.kind == EVENTS
            for event in events.decode(record.frames[0]):
                left = replay.ledger.salvage(event) if skip_corrupt else event
                self.num_lost_events += left != event
                if left is not None:
                    replay.ledger.fold(left)
        for position in replay.ledger.live_positions():
            if start is not None and position < start:
                self.journal.read(position)
        return replay

    def _compact(self) -> None:
        """Begin a new segment with the whole state; once it is written, segments that hold nothing needed go."""
        self._snapshot = self.journal.append([msgspec.msgpack.encode(self.replay.state)], SNAPSHOT)
        self._live = self.replay.ledger.live_positions()
        self._compacted = self.journal.end
        pass_rates.write(self._rates_file, self.replay.state.rates)

    def _load_batch(self, batch: FormedBatch) -> Batch:
        return load_batch(self.journal, batch.step, positions_of(batch), self._settings.phase)
