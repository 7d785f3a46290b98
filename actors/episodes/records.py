"""Episodes on disk for people: trajectories as readable JSONL, and predictions in the SWE-bench harness's format.

docs/55-reading-trajectories.md describes every field.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from actors.episodes.episode_runner import Attempt
from protocol.arrays import pack_arrays
from protocol.chance import draw
from protocol.messages import Trajectory

log = logging.getLogger(__name__)

_MAX_LOG_CHARS = 4000


class Records:
    """Appends to `trajectories/<name>.jsonl` (tokens to `<name>.tokens` beside it) and `predictions/<name>.jsonl`.

    Args:
        share: of the episodes whose trajectory is written; the same ones whenever asked, by episode id.
        model: name of the policy in predictions; None writes none.
    """

    def __init__(self, run_dir: Path, name: str, *, share: float, model: str | None = None) -> None:
        self._share = share
        self._model = model
        self._trajectories = _open(run_dir / "trajectories", name) if share > 0 else None
        self._tokens = (run_dir / "trajectories" / f"{name}.tokens").open("ab", buffering=0) if share > 0 else None
        self._predictions = _open(run_dir / "predictions", name) if model is not None else None

    def write(self, attempt: Attempt) -> None:
        """Record one episode. A disk that takes no more costs the record, never the episode."""
        try:
            if self._trajectories and self._tokens and draw(attempt.trajectory.episode_id) < self._share:
                where = _append_tokens(self._tokens, attempt.trajectory)
                _append(self._trajectories, readable(attempt) | {"token_records": where})
            if self._predictions:
                _append(self._predictions, prediction(attempt, self._model or ""))
        except OSError as error:
            log.warning("episode %s is not recorded: %s", attempt.trajectory.episode_id, error)

    def close(self) -> None:
        """Close the files."""
        for file in (self._trajectories, self._tokens, self._predictions):
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk, as in `write`
                    file.close()


class HeldOutRecords:
    """Every episode of the evaluations while training: `evaluations/version-N/trajectories/<name>.jsonl`, N the version
    from which on the tasks were attempted. One evaluation's files are open at a time, as one is under way."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._directory, self._name = run_dir / "evaluations", name
        self._version = -1
        self._records: Records | None = None

    def write(self, version: int, attempt: Attempt) -> None:
        """Record one episode of the evaluation of `version`, as `Records.write` does."""
        try:
            if self._records is None or version != self._version:
                self.close()
                self._records = Records(self._directory / f"version-{version}", self._name, share=1.0)
                self._version = version
        except OSError as error:
            log.warning("episode %s is not recorded: %s", attempt.trajectory.episode_id, error)
            return
        self._records.write(attempt)

    def close(self) -> None:
        """Close the files."""
        if self._records is not None:
            self._records.close()
        self._records = None


def readable(attempt: Attempt) -> dict[str, Any]:
    """One episode as people read it: who, how it ended, the conversation, the patch, the judgement."""
    trajectory = attempt.trajectory
    messages: list[dict[str, Any]] = list(attempt.opening)
    ends = [turn.end for turn in trajectory.turns]
    branches = None if trajectory.segment_starts is None else trajectory.branches
    for number, (step, turn) in enumerate(zip(attempt.steps, trajectory.turns, strict=True)):
        before = number - 1 if branches is None else branches.turn_before(turn.start, ends[:number])
        branching = {} if before == number - 1 else {"after": before}
        messages += [given | branching for given in step.given or ()]
        messages.append(
            {
                "role": "assistant",
                "content": step.text,
                "tokens": [turn.start, turn.end],
                "versions": _range(trajectory.versions[turn.start : turn.end]),
                "format_error": turn.format_error,
                "generate_s": round(turn.generate_s, 3),
                "at": round(step.at, 3),
            }
            | branching
        )
        if step.given is None:
            messages.append({"role": "tool", "content": step.observation, "execute_s": round(turn.execute_s, 3)})
    return {
        "episode_id": trajectory.episode_id,
        "attempt": trajectory.attempt,
        "task_id": trajectory.task_id,
        "source": attempt.source,
        "repository": attempt.repository,
        "group_id": trajectory.group_id,
        "member": trajectory.member,
        "resolved": trajectory.resolved,
        "reward": trajectory.reward,
        "end_reason": trajectory.end_reason,
        "tampered": trajectory.tampered,
        "num_turns": len(trajectory.turns),
        "num_tokens": len(trajectory.token_ids),
        "num_branches": len(trajectory.branches.leaves()),
        "drift": trajectory.drift,
        "mean_logprob": _mean_logprob(trajectory),
        "started_at": round(trajectory.started_at, 3),
        "judged_from": round(attempt.judged_from, 3),
        "finished_at": round(trajectory.finished_at, 3),
        "messages": messages,
        "patch": attempt.patch.diff,
        "verdict": {
            "reason": attempt.verdict.reason,
            "passed": list(attempt.verdict.passed),
            "failed": list(attempt.verdict.failed),
            "ignored": list(attempt.verdict.ignored),
            "log": attempt.verdict.log[-_MAX_LOG_CHARS:],
        },
    }


def prediction(attempt: Attempt, model: str) -> dict[str, Any]:
    """One line of the SWE-bench harness's predictions file; `episode_id` is an extra that tells runs apart."""
    return {
        "instance_id": attempt.trajectory.task_id,
        "model_name_or_path": model,
        "model_patch": attempt.patch.diff,
        "episode_id": attempt.trajectory.episode_id,
    }


def _mean_logprob(trajectory: Trajectory) -> float:
    """Of the sampled tokens: the policy's confidence in the episode; its negative estimates the entropy."""
    sampled = trajectory.logprobs[trajectory.loss_mask == 1]
    return round(float(sampled.mean()), 5) if sampled.size else 0.0


def _range(versions: Any) -> list[int]:
    return [int(versions.min()), int(versions.max())]


def _open(directory: Path, name: str) -> TextIO:
    directory.mkdir(parents=True, exist_ok=True)
    return (directory / f"{name}.jsonl").open("a", encoding="utf-8", errors="replace", buffering=1)


def _append_tokens(file: BinaryIO, trajectory: Trajectory) -> list[int]:
    """Ids, log-probs, versions and mask of every token of the history. Where they lie: first byte and size."""
    packed = pack_arrays(
        {
            "ids": trajectory.token_ids.astype(np.int32),
            "logprobs": trajectory.logprobs.astype(np.float16),
            "versions": trajectory.versions.astype(np.int32),
            "mask": trajectory.loss_mask.astype(np.uint8),
        }
    )
    start = file.seek(0, 2)
    file.write(packed)
    return [start, len(packed)]


def _append(file: TextIO, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
