"""What became of a run's episodes, out of its directory alone: each has exactly one end, and is trained on once."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from pathlib import Path

import msgspec

from learner.replay import events
from learner.replay.journal.reader import SNAPSHOT, JournalReader
from learner.replay.machine import Replay
from learner.replay.state import State
from protocol.config import Settings
from sandbox.datasets.loading import load_tasks


def settings_of(run_dir: Path) -> Settings:
    """Those that the run had."""
    return Settings.model_validate_json((run_dir / "settings.json").read_bytes())


def state_of(run_dir: Path) -> State:
    """The buffer's, folded from its journal."""
    settings = settings_of(run_dir)
    tasks = [task.ref for task in load_tasks(settings.tasks)]
    replay = Replay(settings, tasks)
    for record in JournalReader(run_dir / "journal").recover():
        if record.kind == SNAPSHOT:
            replay = Replay(settings, tasks, msgspec.msgpack.decode(record.frames[0], type=State))
        else:
            for event in events.decode(record.frames[0]):
                replay.ledger.fold(event)
    return replay.state


def lost(state: State) -> int:
    """Episodes that were leased and neither were accepted, nor failed, nor expired, nor run still: 0 is right."""
    tally = state.tally
    running = sum(member.running for group in state.open.values() for member in group.members)
    return tally.leased - tally.accepted - tally.failed - tally.expired - running


def trained_twice(run_dir: Path) -> int:
    """Episodes that are in the batches of two steps."""
    steps_of: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for line in (run_dir / "steps" / "learner.jsonl").read_bytes().splitlines(keepends=True):
        with contextlib.suppress(ValueError):  # half a line of a killed rank
            record = json.loads(line)
            for episode in record["episodes"]:
                steps_of[episode["episode_id"], episode["attempt"]].add(record["step"])
    return sum(len(steps) - 1 for steps in steps_of.values())
