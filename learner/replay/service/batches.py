"""Batches out of the journal: the trajectories of one, and which ones a run directory still holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from learner.replay import events
from learner.replay.events import Accepted, BatchFormed
from learner.replay.filters import mask_format_errors
from learner.replay.journal.reader import SNAPSHOT, JournalReader
from learner.replay.state import FormedBatch, State
from protocol.errors import JournalError
from protocol.messages import Batch, Submit, Trajectory
from protocol.wire import Codec


def load_batch(journal: JournalReader, step: int, positions: Sequence[int], phase: str) -> Batch:
    """The batch of a step as the learner gets it. Raises `JournalError` (kinds `corrupt`, `forgotten`)."""
    codec = Codec()
    trajectories: list[Trajectory] = []
    for position in positions:
        message = codec.decode(journal.read(position)[1:])
        assert isinstance(message, Submit)
        trajectories.append(message.trajectory)
    if phase == "rft":
        trajectories = [mask_format_errors(trajectory) for trajectory in trajectories]
    return Batch(batch_id=step, trajectories=trajectories)


def positions_of(batch: FormedBatch) -> list[int]:
    """Where its trajectories lie, in their order."""
    return [finished.position for item in batch.items for finished in item.finished]


class KeptBatches:
    """The batches that a run's journal still holds, whether its buffer is at work or not: by step, their positions.

    Raises:
        JournalError: there is no journal, or it is damaged.
    """

    def __init__(self, run_dir: Path) -> None:
        self._journal = JournalReader(run_dir / "journal")
        self._accepted: dict[tuple[int, int], int] = {}  # positions by group and member
        self.positions: dict[int, list[int]] = {}
        for record in self._journal.recover():
            if record.kind == SNAPSHOT:
                self._begin(msgspec.msgpack.decode(record.frames[0], type=State))
                continue
            for event in events.decode(record.frames[0]):
                if isinstance(event, Accepted):
                    self._accepted[event.finished.group, event.finished.member] = event.finished.position
                elif isinstance(event, BatchFormed):
                    self.positions[event.step] = [
                        self._accepted[group, member] for group, members in event.items for member in members
                    ]

    def load(self, step: int, phase: str) -> Batch:
        """Raises `JournalError` with the steps that can be had (kind `forgotten`)."""
        if step not in self.positions:
            known = sorted(self.positions)
            those = f"those of steps {known[0]} to {known[-1]}" if known else "none"
            raise JournalError(f"the batch of step {step} is not in the journal: it holds {those}", kind="forgotten")
        return load_batch(self._journal, step, self.positions[step], phase)

    def _begin(self, state: State) -> None:
        ready = [finished for items in state.ready.values() for item in items for finished in item.finished]
        in_groups = [m.finished for group in state.open.values() for m in group.members if m.finished]
        self._accepted = {(f.group, f.member): f.position for f in (*ready, *in_groups)}
        self.positions = {step: positions_of(batch) for step, batch in state.batches.items()}
