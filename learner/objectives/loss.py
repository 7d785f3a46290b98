"""Loss of every token: the objective's own, and what is an option of every objective.

`truncate_importance` is truncated importance sampling (Yao et al., "Your efficient RL framework secretly brings you
off-policy RL training", 2025): the objective's ratios are taken against the weights at the start of the step, and its
loss and the KL are multiplied by `min(prox / mu, cap)`, without a gradient, for the policy that sampled.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from learner.objectives.parts.kl import ESTIMATORS
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.parts.ratios import old_policy, ratio_of
from learner.objectives.registry import objective_named
from protocol.config import LossSettings


def token_losses(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    """Loss of every token, 0 where its weight is 0. Same shape as the inputs."""
    old = old_policy(tokens, settings)
    losses = objective_named(settings.name).loss(replace(tokens, behaviour=old), settings)
    if settings.kl_coef:
        assert tokens.reference is not None, "kl_coef needs the log-probabilities of the reference policy"
        losses = losses + settings.kl_coef * ESTIMATORS[settings.kl_estimator](tokens.logprobs, tokens.reference)
    if settings.truncate_importance is not None:
        losses = losses * ratio_of(old, tokens.behaviour).clamp(max=settings.truncate_importance)
    if settings.entropy_coef:
        assert tokens.entropy is not None, "entropy_coef needs the entropy of every token"
        losses = losses - settings.entropy_coef * tokens.entropy
    return torch.where(tokens.weights > 0, losses, torch.zeros_like(losses))
