"""What the slow references of objectives share: the tokens of a batch as lists, and formulas one number at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, pstdev

from protocol.config import LossSettings

LossAndSlope = tuple[float, float]
"""Loss of one token, and its derivative by the token's own log-prob."""


@dataclass
class Tokens:
    """Lists with one entry a token."""

    logp: list[float]
    behaviour: list[float]
    proximal: list[float]
    advantage: list[float]
    sequence: list[int]
    weight: list[float]
    value: list[float]
    returns: list[float]
    reference: list[float]

    def mean_log_ratio(self, t: int) -> float:
        """Mean of log(pi / mu) over the trained tokens of t's sequence."""
        mine = [i for i in range(len(self.logp)) if self.sequence[i] == self.sequence[t] and self.weight[i] > 0]
        return fmean(self.logp[i] - self.behaviour[i] for i in mine)


def clipped(ratio: float, advantage: float, s: LossSettings) -> LossAndSlope:
    """PPO's clip with the dual clip; the slope is by the log of the ratio."""
    bounded = min(max(ratio, 1 - s.eps_low), 1 + s.eps_high)
    surrogate, slope = ratio * advantage, ratio * advantage
    if bounded * advantage < surrogate:
        surrogate, slope = bounded * advantage, 0.0
    if s.dual_clip is not None and advantage < 0 and s.dual_clip * advantage > surrogate:
        surrogate, slope = s.dual_clip * advantage, 0.0
    return -surrogate, -slope


def ratio(new: float, old: float) -> float:
    return math.exp(new - old)


def leaves(ratio: float, advantage: float) -> bool:
    """Whether the advantage pushes the ratio further from 1."""
    return (advantage > 0 and ratio > 1) or (advantage < 0 and ratio < 1)


def group_normalised(rewards: list[float]) -> list[float]:
    mean, std = fmean(rewards), pstdev(rewards)
    if std <= 1e-9 * max(1.0, max(abs(r) for r in rewards)):
        return [0.0 for _ in rewards]
    return [(r - mean) / std for r in rewards]


def group_centred(rewards: list[float]) -> list[float]:
    return [r - fmean(rewards) for r in rewards]


def leave_one_out(rewards: list[float]) -> list[float]:
    if len(rewards) == 1:
        return [0.0]
    return [r - fmean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]


def gae(values: list[float], reward: float, gamma: float, decay: float) -> tuple[list[float], list[float]]:
    """Advantages and returns of one sequence's sampled tokens, as the sum that defines them."""
    count = len(values)
    rewards = [0.0] * (count - 1) + [reward]
    later = [*values[1:], 0.0]
    delta = [rewards[k] + gamma * later[k] - values[k] for k in range(count)]
    advantages = [sum((gamma * decay) ** (j - k) * delta[j] for j in range(k, count)) for k in range(count)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]
