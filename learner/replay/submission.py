"""Whether a submitted trajectory can be believed: shapes, masks, numbers and versions. Pure; raises `ReplayError`."""

from __future__ import annotations

import math

import numpy as np

from protocol.errors import ReplayError
from protocol.messages import NOT_SAMPLED, Lease, Trajectory

_DTYPES = {"token_ids": np.int32, "loss_mask": np.uint8, "logprobs": np.float32, "versions": np.int32}


def check_trajectory(trajectory: Trajectory, newest_version: int, max_context: int) -> int:
    """Refuse a trajectory that could not be trained on; the oldest version that sampled a token of it.

    Args:
        newest_version: no weights newer than this exist yet.
        max_context: most tokens that the model may see at once: of each path.

    Raises:
        ReplayError: kinds `arrays`, `segments`, `too_long`, `mask`, `no_sampled_token`, `not_finite`, `future_version`,
            `turns`.
    """
    _check_arrays(trajectory)
    try:
        longest = max(trajectory.branches.path_lengths(), default=0)
    except ValueError as error:
        raise ReplayError(f"the segments of the history are no tree: {error}", kind="segments") from error
    if longest > max_context:
        raise ReplayError(f"a context of {longest} tokens; at most {max_context} were leased", kind="too_long")
    sampled = trajectory.loss_mask == 1
    if trajectory.loss_mask.max(initial=0) > 1 or not np.array_equal(sampled, trajectory.versions != NOT_SAMPLED):
        raise ReplayError("loss_mask must be 1 exactly where a version is stamped, and 0 where it is not", kind="mask")
    versions = trajectory.versions[sampled]
    if not versions.size:
        raise ReplayError("no token of the trajectory was sampled: nothing to train on", kind="no_sampled_token")
    numbers = (trajectory.reward, trajectory.started_at, trajectory.finished_at)
    if not (np.isfinite(trajectory.logprobs).all() and all(map(math.isfinite, numbers))):
        raise ReplayError("log-probs, reward or times hold NaN or infinity", kind="not_finite")
    oldest, newest = int(versions.min()), int(versions.max())
    if oldest < 0 or newest > newest_version:
        raise ReplayError(
            f"tokens stamped with versions {oldest} to {newest}; the newest is {newest_version}", kind="future_version"
        )
    _check_turns(trajectory)
    return oldest


def check_identity(trajectory: Trajectory, lease: Lease) -> None:
    """Refuse a trajectory whose names contradict its lease. Raises `ReplayError` (kind `mismatch`)."""
    for name in ("episode_id", "task_id", "group_id", "member", "attempt"):
        expected, got = getattr(lease, name), getattr(trajectory, name)
        if expected != got:
            raise ReplayError(
                f"lease {lease.lease_id} has {name} {expected!r}, the trajectory {got!r}", kind="mismatch"
            )


def _check_arrays(trajectory: Trajectory) -> None:
    shape = trajectory.token_ids.shape
    for name, dtype in _DTYPES.items():
        array = getattr(trajectory, name)
        if array.ndim != 1 or array.shape != shape or array.dtype != dtype:
            raise ReplayError(
                f"{name} has shape {array.shape} and {array.dtype}; expected {shape} and {np.dtype(dtype)}",
                kind="arrays",
            )
    if trajectory.experts is not None:
        _check_experts(trajectory.experts, len(trajectory.token_ids))


def _check_experts(experts: np.ndarray, num_tokens: int) -> None:
    if experts.ndim != 3 or len(experts) != num_tokens or experts.dtype not in (np.uint8, np.uint16):
        raise ReplayError(
            f"experts have shape {experts.shape} and {experts.dtype}; expected small integers for {num_tokens} tokens",
            kind="arrays",
        )


def _check_turns(trajectory: Trajectory) -> None:
    end = 0
    for turn in trajectory.turns:
        if not end <= turn.start <= turn.end <= trajectory.token_ids.size:
            raise ReplayError(
                f"turn {turn.start}:{turn.end} overlaps another or leaves the {trajectory.token_ids.size} tokens",
                kind="turns",
            )
        end = turn.end
