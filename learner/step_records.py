"""What was trained in each step, on disk for people: episodes with their advantages, and the tokens whose
probabilities the learner and the sampler see most differently. docs/55-reading-trajectories.md describes the fields.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from learner.objectives.samples import Sample
from protocol.arrays import pack_arrays
from protocol.chance import draw
from protocol.messages import Batch, Trajectory

_log = logging.getLogger(__name__)
_WORST = 20


class StepRecords:
    """Appends to `steps/learner.jsonl` of a run directory, and single tokens to `learner.tokens` beside it.

    Args:
        share: of the episodes whose tokens are written: those whose trajectories the actors write.
    """

    def __init__(self, run_dir: Path, share: float) -> None:
        directory = run_dir / "steps"
        directory.mkdir(parents=True, exist_ok=True)
        self._share = share
        self._lines = (directory / "learner.jsonl").open("ab", buffering=0)
        self._tokens = (directory / "learner.tokens").open("ab", buffering=0)

    def write(self, step: int, batch: Batch, samples: Sequence[Sample], logprobs: Sequence[np.ndarray]) -> None:
        """Record one step; `logprobs` are the learner's, before its update, one array a sample; none: nothing was
        trained. A disk that takes no more costs the record, never the step.
        """
        try:
            by_source: dict[int, list[int]] = defaultdict(list)
            for number, sample in enumerate(samples if logprobs else ()):
                by_source[sample.source].append(number)
            episodes = [
                self._episode(
                    trajectory, [samples[i] for i in by_source[source]], [logprobs[i] for i in by_source[source]]
                )
                for source, trajectory in enumerate(batch.trajectories)
            ]
            record = {"step": step, "episodes": episodes, "worst": worst(batch, samples, logprobs) if logprobs else []}
            self._lines.write(msgspec.json.encode(record) + b"\n")
        except OSError as error:
            _log.warning("step %d is not recorded: %s", step, error)

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        self._tokens.close()

    def _episode(
        self, trajectory: Trajectory, samples: Sequence[Sample], logprobs: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        trained = [sample.weights > 0 for sample in samples]
        advantages = np.concatenate([s.advantages[on] for s, on in zip(samples, trained, strict=True)] or [np.empty(0)])
        record: dict[str, Any] = {
            "episode_id": trajectory.episode_id,
            "attempt": trajectory.attempt,
            "task_id": trajectory.task_id,
            "group_id": trajectory.group_id,
            "member": trajectory.member,
            "reward": trajectory.reward,
            "resolved": trajectory.resolved,
            "trained_tokens": len(advantages),
            "advantage": round(float(advantages.mean()), 5) if len(advantages) else 0.0,
        }
        if len(advantages) and draw(trajectory.episode_id) < self._share:
            places = [places_of(sample)[on] for sample, on in zip(samples, trained, strict=True)]
            ratios = [(own - s.behaviour)[on] for s, own, on in zip(samples, logprobs, trained, strict=True)]
            packed = pack_arrays(
                {
                    "places": np.concatenate(places).astype(np.int32),
                    "log_ratios": np.concatenate(ratios).astype(np.float16),
                    "advantages": advantages.astype(np.float16),
                }
            )
            record["token_records"] = [self._tokens.seek(0, 2), len(packed)]
            self._tokens.write(packed)
        return record


def places_of(sample: Sample) -> np.ndarray:
    """Where in its trajectory each entry's target is, int64 [tokens]; the last entry has none."""
    path = np.arange(len(sample)) if sample.path is None else sample.path
    return np.append(path[1:], -1)


def worst(batch: Batch, samples: Sequence[Sample], logprobs: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """The trained tokens whose log-probs differ most between learner and sampler, the worst first."""
    found = []
    for sample, own in zip(samples, logprobs, strict=True):
        distance = np.where(sample.weights > 0, np.abs(own - sample.behaviour), -1)
        for at in np.argsort(distance, kind="stable")[::-1][:_WORST]:
            if distance[at] >= 0:
                found.append((float(distance[at]), sample, int(at), own))
    found.sort(key=lambda entry: -entry[0])
    return [
        {
            "episode_id": batch.trajectories[sample.source].episode_id,
            "place": int(places_of(sample)[at]),
            "token": int(sample.targets[at]),
            "learner": round(float(own[at]), 5),
            "sampler": round(float(sample.behaviour[at]), 5),
            "advantage": round(float(sample.advantages[at]), 5),
            "staleness": int(sample.staleness[at]),
        }
        for _, sample, at, own in found[:_WORST]
    ]
