"""Trajectories to training samples: refuse what must not be trained on, align everything with what predicts it.

In a sample, entry `t` of every array is about predicting token `t + 1`; the last entry predicts nothing and has weight
0. Aligning here, on whole sequences, is what lets packing and Ulysses cut anywhere afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from learner.objectives.advantage import step_rewards_of, token_advantages
from learner.objectives.parts.averaging import token_weight
from learner.objectives.registry import averaging_of, loss_settings
from protocol.config import Settings
from protocol.messages import Trajectory


@dataclass(frozen=True)
class Sample:
    """One path of a trajectory, ready to be packed. All arrays have one entry a token.

    A straight history has one path. Of a tree, every path is a sample with its whole context, and a sampled token that
    several share is trained in the first of them: once, with the gradient that it has in any.
    """

    token_ids: np.ndarray  # int64
    targets: np.ndarray  # int64, the next token (last entry: 0)
    weights: np.ndarray  # float32, weight of predicting the target in the batch's mean, 0: not trained on
    behaviour: np.ndarray  # float32, log-prob of the target under the policy that sampled it
    advantages: np.ndarray  # float32
    staleness: np.ndarray  # int32, learner's version minus the target's version (0 where not trained on)
    behind_older: np.ndarray  # bool, keys and values of older weights than the target's may lie behind it
    experts: np.ndarray | None = None  # [tokens, layers, experts of a token], of each token itself; see `Trajectory`
    reference: np.ndarray | None = None  # float32, log-prob of the target under a reference policy at an endpoint
    share: float = 1.0  # of its episode: the shares of an episode's samples add up to 1
    source: int = 0  # its trajectory's place in the batch
    path: np.ndarray | None = None  # int64, places of its tokens in that trajectory; None: all, in their order

    def __len__(self) -> int:
        return len(self.token_ids)


def make_samples(
    trajectories: Sequence[Trajectory], settings: Settings, version: int, vocab_size: int
) -> tuple[list[Sample], Counter[str]]:
    """Samples of all usable trajectories, and how many were left out for which reason.

    Reasons: those of `unusable`, and `unsolved` (phase `rft` trains on successes only, without the turns whose action
    could not be read). Advantages are taken over the usable members of a group only.
    """
    left_out: Counter[str] = Counter()
    usable, sources = [], []
    for source, trajectory in enumerate(trajectories):
        reason = unusable(trajectory, settings.model.max_context, vocab_size)
        if reason:
            left_out[reason] += 1
        elif settings.phase == "rft" and not trajectory.resolved:
            left_out["unsolved"] += 1
        else:
            usable.append(trajectory)
            sources.append(source)
    if settings.phase == "rft":
        advantages = [_on_readable_turns(trajectory) for trajectory in usable]
        masks = [advantage > 0 for advantage in advantages]
    else:
        advantages = token_advantages(usable, settings, step_rewards_of(settings))
        masks = [trajectory.loss_mask == 1 for trajectory in usable]
    averaging, context = averaging_of(loss_settings(settings)), settings.model.max_context
    samples: list[Sample] = []
    for source, trajectory, advantage, mask in zip(sources, usable, advantages, masks, strict=True):
        paths = _trained_paths(trajectory, mask)
        counts = [int(trained[1:].sum()) for _, trained in paths]
        weight = token_weight(averaging, sum(counts), context)
        for (path, trained), count in zip(paths, counts, strict=True):
            share = count / sum(counts) if len(paths) > 1 else 1.0
            sample = _sample(trajectory, advantage, path, trained, version, weight)
            samples.append(replace(sample, share=share, source=source, path=path if len(paths) > 1 else None))
    return samples, left_out


def has_signal(samples: Sequence[Sample], *, without_rewards: bool = False) -> bool:
    """Whether any token would move the policy; `without_rewards`: one whose advantage is 0 does, too."""
    return any(bool(((s.weights > 0) & (without_rewards | (s.advantages != 0))).any()) for s in samples)


def unusable(trajectory: Trajectory, max_context: int, vocab_size: int) -> str:
    """Why the trajectory must not be trained on; empty if it may."""
    num_tokens = len(trajectory.token_ids)
    try:
        longest = max(trajectory.branches.path_lengths(), default=0)
    except ValueError:
        return "malformed"
    arrays = (trajectory.loss_mask, trajectory.logprobs, trajectory.versions)
    if num_tokens < 2 or any(array.shape != (num_tokens,) for array in arrays):
        return "malformed"
    if any(not 0 <= turn.start <= turn.end <= num_tokens for turn in trajectory.turns):
        return "malformed"
    if longest > max_context:
        return "too_long"
    if not np.isfinite(trajectory.reward):
        return "nan_reward"
    if trajectory.token_ids.min() < 0 or trajectory.token_ids.max() >= vocab_size:
        return "vocabulary"
    sampled = trajectory.logprobs[trajectory.loss_mask == 1]
    if not np.isfinite(sampled).all() or (sampled > 1e-3).any():
        return "nan_logprob"
    return ""


def _on_readable_turns(trajectory: Trajectory) -> np.ndarray:
    """1 on sampled tokens, 0 elsewhere and on turns with a format error."""
    advantages: np.ndarray = (trajectory.loss_mask == 1).astype(np.float32)
    for turn in trajectory.turns:
        if turn.format_error:
            advantages[turn.start : turn.end] = 0
    return advantages


def _trained_paths(trajectory: Trajectory, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Paths (int64 [n]) with what is trained in each (bool [n]): of `mask` (bool [tokens]) every token once.

    A path of a tree in which nothing is trained is left out; a straight history is one path, whatever it holds.
    """
    paths = [(path, new & mask[path]) for path, new in trajectory.branches.paths()]
    return [(path, trained) for path, trained in paths if len(paths) == 1 or trained[1:].any()]


def _sample(
    trajectory: Trajectory,
    advantages: np.ndarray,
    path: np.ndarray,
    trained: np.ndarray,
    version: int,
    weight: float,
) -> Sample:
    token_ids = trajectory.token_ids[path].astype(np.int64)
    return Sample(
        token_ids=token_ids,
        targets=_from_next(token_ids),
        weights=_from_next(trained.astype(np.float32) * np.float32(weight)),
        behaviour=_from_next(np.where(trained, trajectory.logprobs[path], 0).astype(np.float32)),
        advantages=_from_next(advantages[path].astype(np.float32)),
        staleness=_from_next(np.where(trained, version - trajectory.versions[path], 0).astype(np.int32)),
        behind_older=_from_next(trained & _behind_older(trajectory)[path]),
        experts=None if trajectory.experts is None else trajectory.experts[path],
    )


def _behind_older(trajectory: Trajectory) -> np.ndarray:
    """bool [tokens]: sampled where keys and values of older weights may have been reused, from a cache or because the
    weights changed in the middle of the turn."""
    found = np.zeros(len(trajectory.token_ids), bool)
    for turn in trajectory.turns:
        versions = trajectory.versions[turn.start : turn.end]
        if len(versions):
            cached = versions[0] if turn.cached_version is None else turn.cached_version
            found[turn.start : turn.end] = versions > np.minimum(np.minimum.accumulate(versions), cached)
    return found


def _from_next(array: np.ndarray) -> np.ndarray:
    """`array` moved one to the left: entry t holds what belongs to token t + 1, the last entry 0."""
    moved: np.ndarray = np.append(array[1:], array.dtype.type(0))
    return moved
