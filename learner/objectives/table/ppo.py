"""Clip by token with advantages from a learned value of every token, instead of a group's mean.

    V: a linear head on the policy's last hidden state; A, ret: GAE(gamma, gae_lambda) over the episode's sampled tokens
    loss(t) = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) + value_coef (V - ret)^2 / 2, r = pi(t) / mu(t)

Source: PPO, Schulman et al., arXiv 1707.06347; GAE: arXiv 1506.02438; gamma = lambda = 1: Hu et al., arXiv 2503.24290.

A batch is one step, so there is no older value to clip against. Format penalties are refused: they are no returns.
A branching episode: each of its samples is a sequence that ends with the episode's reward; each token once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from learner.objectives.parts.advantages import episode_reward
from learner.objectives.parts.gae import gae
from learner.objectives.parts.objective import Objective, TokenTensors
from learner.objectives.parts.ratios import clip_loss
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    assert tokens.values is not None and tokens.returns is not None, "ppo needs a value head"
    return clip_loss(tokens, settings) + settings.value_coef * (tokens.values - tokens.returns).square() / 2


def _targets(
    values: np.ndarray, rewards: np.ndarray, documents: np.ndarray, trained: np.ndarray, settings: LossSettings
) -> tuple[np.ndarray, np.ndarray]:
    return gae(values, rewards, documents, trained, settings.gamma, settings.gae_lambda)


OBJECTIVE = Objective(
    loss=_loss,
    advantages=episode_reward,
    averaging="token",
    reads=("eps_low", "eps_high", "dual_clip", "value_coef", "gamma", "gae_lambda"),
    targets=_targets,
)
