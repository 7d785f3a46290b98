"""Loss of every token: the objective's own, and what is added to every objective."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.parts.kl import kl_k3
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.registry import objective_named
from protocol.config import LossSettings


def token_losses(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    """Loss of every token, 0 where its weight is 0. Same shape as the inputs."""
    losses = objective_named(settings.name).loss(tokens, settings)
    if settings.kl_coef:
        assert tokens.reference is not None, "kl_coef needs the log-probabilities of the reference policy"
        losses = losses + settings.kl_coef * kl_k3(tokens.logprobs, tokens.reference)
    if settings.entropy_coef:
        assert tokens.entropy is not None, "entropy_coef needs the entropy of every token"
        losses = losses - settings.entropy_coef * tokens.entropy
    return torch.where(tokens.weights > 0, losses, torch.zeros_like(losses))
