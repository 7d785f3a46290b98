"""What the learner and its publisher ask of the replay buffer: batches, and what became of them.

A batch belongs to a step. It is given again, the same, until no checkpoint that the learner could come back to needs
it: a learner that crashes between fetching and stepping trains on it once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from learner.replay.batch_choice import choose
from learner.replay.events import BatchFormed, Checkpointed, Event, Stale, Started, Trained, VersionServed
from learner.replay.ledger import Ledger
from learner.replay.state import FormedBatch
from protocol.config import Settings
from protocol.errors import ReplayError
from protocol.messages import (
    BatchDone,
    BatchDoneReply,
    BatchRequest,
    BatchWait,
    CheckpointMark,
    CheckpointMarkReply,
    VersionReady,
    VersionReadyReply,
)

_RETRY_S = 0.1


class Batching:
    """Decides for the learner. Whoever asks first is the learner of this process's life.

    Args:
        emit: takes each event that happens; the ledger has folded it when `emit` returns.
    """

    def __init__(self, settings: Settings, ledger: Ledger, emit: Callable[[Event], None]) -> None:
        self._settings = settings
        self._ledger = ledger
        self._emit = emit
        self._learner = ""

    def give(self, request: BatchRequest) -> FormedBatch | BatchWait:
        """The batch of the step after the learner's version, or what it waits for."""
        self._check_learner(request.learner)
        step = request.version + 1
        if step in self._ledger.state.batches:
            return self._ledger.state.batches[step]
        if step <= self._ledger.state.last_batch:
            raise ReplayError(
                f"the batch of step {step} is forgotten: a checkpoint of a later version was saved", kind="forgotten"
            )
        if step > self._settings.steps or self._settings.phase == "eval":
            raise ReplayError(f"the run has {self._settings.steps} steps; none needs another batch", kind="over")
        self._start_at(request.version)
        self._check_exists(request.version)
        return self._form(step)

    def _form(self, step: int) -> FormedBatch | BatchWait:
        self._drop_stale(step)
        missing = self._ledger.places.batch - self._ledger.places.ready.total()
        if missing > 0:
            return BatchWait(
                retry_after_s=_RETRY_S,
                waiting_for=f"{missing} more of {self._ledger.places.batch} trajectories for step {step}; "
                f"{len(self._ledger.running)} episodes run",
            )
        chosen = choose(self._ledger.state.ready, self._ledger.places.batch, self._settings.micro_batch_tokens)
        taken: Counter[int] = Counter()
        for item in chosen:
            taken[item.oldest] += item.places
        late = self._ledger.places.overtaken(step, taken)
        if late is not None:
            return BatchWait(
                retry_after_s=_RETRY_S,
                waiting_for=f"groups of version {late}, due in step {self._ledger.places.due(late)}, to finish "
                f"before step {step} may use newer ones",
            )
        self._emit(BatchFormed(step=step, items=[(item.group, [m.member for m in item.finished]) for item in chosen]))
        return self._ledger.state.batches[step]

    def _drop_stale(self, step: int) -> None:
        for version in sorted(self._ledger.state.ready):
            if self._ledger.places.due(version) < step:
                for item in list(self._ledger.state.ready[version]):
                    self._emit(Stale(group=item.group, members=[m.member for m in item.finished]))

    def trained(self, done: BatchDone) -> BatchDoneReply:
        """A step was made."""
        self._check_learner(done.learner)
        if done.batch_id != done.version:
            raise ReplayError(
                f"batch {done.batch_id} makes version {done.batch_id}, the learner says {done.version}", kind="mismatch"
            )
        if not 0 < done.batch_id <= self._ledger.state.last_batch:
            raise ReplayError(f"batch {done.batch_id} was never given", kind="unknown_batch")
        batch = self._ledger.state.batches.get(done.batch_id)
        if batch is not None and not batch.trained:
            self._emit(Trained(step=batch.step))
        return BatchDoneReply()

    def served(self, ready: VersionReady) -> VersionReadyReply:
        """Every generator serves a version: admission moves."""
        self._start_at(ready.version)
        self._check_exists(ready.version)
        if ready.version != self._ledger.state.served:
            self._emit(VersionServed(version=ready.version))
        return VersionReadyReply()

    def checkpointed(self, mark: CheckpointMark, position: int) -> CheckpointMarkReply:
        """The learner can come back to a version; batches before the oldest such version are forgotten."""
        self._start_at(mark.version)
        self._check_exists(mark.version)
        self._emit(Checkpointed(version=mark.version, path=mark.path))
        state = self._ledger.state
        return CheckpointMarkReply(journal_offset=position, wanted=state.held_out.wanted(state.served))

    def _check_exists(self, version: int) -> None:
        last = self._ledger.state.last_batch
        if not 0 <= version <= last:
            raise ReplayError(
                f"version {version} cannot exist: step {last} is the last that had a batch", kind="future_version"
            )

    def _start_at(self, version: int) -> None:
        """A learner that was resumed elsewhere begins past 0 with a buffer that never made a batch."""
        is_new = self._ledger.state.last_batch == 0 and not self._ledger.state.batches
        if is_new and 0 < version <= self._settings.steps:
            self._emit(Started(version=version))

    def _check_learner(self, name: str) -> None:
        if self._learner and name != self._learner:
            raise ReplayError(
                f"{self._learner} is the learner of this run; {name} is a second one", kind="second_learner"
            )
        self._learner = name
