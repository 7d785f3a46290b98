"""Random trajectories, and the buffer's records of them, of the shape that real ones have; for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from learner.replay.events import Finished
from protocol.messages import NOT_SAMPLED, Trajectory, Turn


def random_trajectory(
    rng: np.random.Generator,
    num_tokens: int,
    *,
    group: str = "group",
    member: int = 0,
    vocab_size: int = 512,
    num_turns: int = 3,
    resolved: bool | None = None,
    version: int = 0,
    format_errors: bool = False,
) -> Trajectory:
    """`num_turns` turns over random tokens, half of them sampled, with log-probs near those of a random model."""
    edges = np.linspace(1, num_tokens, 2 * num_turns + 1).astype(int)
    turns = [
        Turn(start=int(start), end=int(end), format_error=format_errors and k == 0)
        for k, (start, end) in enumerate(zip(edges[1::2], edges[2::2], strict=True))
    ]
    mask = np.zeros(num_tokens, np.uint8)
    for turn in turns:
        mask[turn.start : turn.end] = 1
    solved = bool(rng.integers(2)) if resolved is None else resolved
    return Trajectory(
        episode_id=f"{group}/{member}",
        lease_id=f"{group}/{member}/1",
        task_id=group,
        group_id=group,
        member=member,
        attempt=1,
        resolved=solved,
        reward=float(solved),
        end_reason="submitted",
        turns=turns,
        token_ids=rng.integers(3, vocab_size, num_tokens).astype(np.int32),
        loss_mask=mask,
        logprobs=np.where(mask, rng.normal(-np.log(vocab_size), 0.3, num_tokens), 0).astype(np.float32),
        versions=np.where(mask, version, NOT_SAMPLED).astype(np.int32),
        started_at=0.0,
        finished_at=1.0,
    )


def random_batch(
    rng: np.random.Generator, lengths: Sequence[int], group_size: int, **options: int | bool
) -> list[Trajectory]:
    """Trajectories of the given lengths in groups of `group_size`; every group has a success and a failure."""
    return [
        random_trajectory(
            rng,
            length,
            group=f"group-{i // group_size}",
            member=i % group_size,
            resolved=i % group_size % 2 == 0,
            **options,  # type: ignore[arg-type]
        )
        for i, length in enumerate(lengths)
    ]


def paper_lengths(rng: np.random.Generator, count: int, context: int) -> list[int]:
    """Lengths of `count` episodes as in arXiv 2508.03501: log-normal, long-tailed, some cut off at the context."""
    lengths = rng.lognormal(np.log(context / 2.6), 0.55, count)
    return [int(length) for length in np.clip(lengths, 1000, context)]


def finished_member(member: int = 0, **changes: Any) -> Finished:
    """What the buffer keeps of an accepted success of 10 tokens, with `changes`."""
    fields: dict[str, Any] = {
        "group": 0,
        "member": member,
        "attempt": 1,
        "position": 0,
        "resolved": True,
        "reward": 1.0,
        "end_reason": "submitted",
        "num_tokens": 10,
        "num_turns": 2,
        "num_readable_turns": 2,
        "oldest_version": 0,
        "duration_s": 1.0,
        "overlong": False,
        "tampered": False,
    }
    return Finished(**fields | changes)
