"""What recording costs in processor time of its own, timed alone: what other load on a host does to a whole run is
larger than that. Episodes and batches are random, of the size that the run's were."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actors.agent.episode import Step
from actors.episodes.episode_runner import Attempt
from actors.episodes.records import Records
from learner.objectives.samples import make_samples
from learner.step_records import StepRecords
from protocol.config import Settings
from protocol.messages import Batch
from sandbox.judgement.verdicts import Verdict
from sandbox.patches import Patch
from tiny.trajectories import random_batch, random_trajectory

_VOCABULARY = 512
_SAID, _SEEN = "I look at the file and change it.\n" * 6, "a line of output, as tools print them\n" * 30
_REPEATS = 40


class Sizes(NamedTuple):
    """Of a run."""

    tokens: int  # of an episode
    turns: int
    batch: int  # episodes
    group: int
    share: float  # of the episodes that are recorded


class Accounts(NamedTuple):
    """Milliseconds of processor time."""

    episode_ms: float  # an episode's records, those that are not recorded counted in
    step_ms: float  # a step's records


def account(directory: Path, sizes: Sizes) -> Accounts:
    """Write the records of random episodes and steps below `directory`."""
    rng = np.random.default_rng(0)
    trajectory = random_trajectory(rng, sizes.tokens, num_turns=sizes.turns)
    attempt = Attempt(
        trajectory=trajectory,
        opening=[{"role": "system", "content": _SEEN}, {"role": "user", "content": _SEEN}],
        steps=[Step(start=turn.start, end=turn.end, text=_SAID, observation=_SEEN) for turn in trajectory.turns],
        patch=Patch(diff=_SEEN),
        verdict=Verdict(resolved=True, reason="all named tests passed", log=_SEEN * 4),
    )
    records = Records(directory, "accounted", share=1.0)
    episode_ms = sizes.share * _processor_ms(lambda: records.write(attempt))
    records.close()

    batch = Batch(batch_id=1, trajectories=random_batch(rng, [sizes.tokens] * sizes.batch, sizes.group))
    samples, _ = make_samples(batch.trajectories, Settings(), 0, _VOCABULARY)
    logprobs = [sample.behaviour + rng.normal(0, 0.01, len(sample.behaviour)) for sample in samples]
    steps = StepRecords(directory, sizes.share)
    step_ms = _processor_ms(lambda: steps.write(1, batch, samples, logprobs))
    steps.close()
    return Accounts(episode_ms, step_ms)


def _processor_ms(work: Callable[[], None]) -> float:
    work()
    began = time.process_time()
    for _ in range(_REPEATS):
        work()
    return 1000 * (time.process_time() - began) / _REPEATS
