"""Objectives of the learner: pure functions of per-token tensors.

Every objective is a loss per token; the loss of a batch is `sum(weight * loss) / sum(weight)` over all tokens of all
ranks and micro-batches. Token-level objectives weigh every trained token 1, so that is the token mean of DAPO (Yu et
al., arXiv 2503.14476, eq. 8); the sequence-level one weighs a token 1 / (tokens of its sequence), so that is the
sequence mean of GSPO (Zheng et al., arXiv 2507.18071). No sum crosses ranks inside autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.config import LossSettings

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before `exp`: beyond it every objective has long been clipped, and infinity times zero
would be NaN."""


@dataclass(frozen=True)
class TokenTensors:
    """What an objective sees. All are float tensors of the same shape, one entry a token."""

    logprobs: Tensor
    """Log-probabilities under the weights being trained; the only tensor through which the gradient flows."""
    behaviour: Tensor
    """Log-probabilities under the policy that sampled the token, as the generator reported them."""
    advantages: Tensor
    """Advantages (`rft`: 1)."""
    weights: Tensor
    """Weight of the token in the batch's mean; 0 where it is not trained on."""
    proximal: Tensor | None = None
    """Log-probabilities under the weights at the start of the step (default: `logprobs`, right for the first step)."""
    sequence_log_ratio: Tensor | None = None
    """Mean of `logprobs - behaviour` over the trained tokens of the token's sequence; needed by `gspo`."""
    entropy: Tensor | None = None
    """Entropy of the policy at the token; needed when `entropy_coef` is not 0."""
    reference: Tensor | None = None
    """Log-probabilities under the starting policy; needed when `kl_coef` is not 0."""


def token_losses(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    """Loss of every token, 0 where its weight is 0. Same shape as the inputs."""
    losses = _OBJECTIVES[settings.name](tokens, settings)
    if settings.kl_coef:
        assert tokens.reference is not None, "kl_coef needs the log-probabilities of the reference policy"
        losses = losses + settings.kl_coef * kl_k3(tokens.logprobs, tokens.reference)
    if settings.entropy_coef:
        assert tokens.entropy is not None, "entropy_coef needs the entropy of every token"
        losses = losses - settings.entropy_coef * tokens.entropy
    return torch.where(tokens.weights > 0, losses, torch.zeros_like(losses))


def ratio_of(new: Tensor, old: Tensor) -> Tensor:
    """`exp(new - old)`, finite."""
    return (new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) at tokens of the policy: `exp(d) - 1 - d`, `d = ref - logp`."""
    difference = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference.exp() - 1 - difference


def clipped(ratio: Tensor, advantages: Tensor, settings: LossSettings) -> Tensor:
    """PPO's pessimistic surrogate with asymmetric bounds and, if asked, the dual clip of Ye et al. (1912.09729)."""
    bounded = ratio.clamp(1 - settings.eps_low, 1 + settings.eps_high)
    surrogate = torch.minimum(ratio * advantages, bounded * advantages)
    if settings.dual_clip is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, settings.dual_clip * advantages), surrogate)
    return -surrogate


def _dapo(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    return clipped(ratio_of(tokens.logprobs, tokens.behaviour), tokens.advantages, settings)


def _decoupled(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    proximal = _proximal(tokens)
    weight = ratio_of(proximal, tokens.behaviour).clamp(max=settings.truncate_weight)
    return weight * clipped(ratio_of(tokens.logprobs, proximal), tokens.advantages, settings)


def _icepop(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    proximal = _proximal(tokens)
    weight = ratio_of(proximal, tokens.behaviour)
    inside = (weight >= settings.band_low) & (weight <= settings.band_high)
    return inside * weight * clipped(ratio_of(tokens.logprobs, proximal), tokens.advantages, settings)


def _gspo(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    """Value of the sequence ratio, gradient through each token's own log-prob (GSPO-token, eq. 17)."""
    assert tokens.sequence_log_ratio is not None, "gspo needs the mean log-ratio of every token's sequence"
    sequence = tokens.sequence_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().detach()
    ratio = sequence * (tokens.logprobs - tokens.logprobs.detach()).exp()
    return clipped(ratio, tokens.advantages, settings)


def _rft(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    return -tokens.logprobs * tokens.advantages


def _proximal(tokens: TokenTensors) -> Tensor:
    return (tokens.logprobs if tokens.proximal is None else tokens.proximal).detach()


_OBJECTIVES = {"dapo": _dapo, "decoupled": _decoupled, "gspo": _gspo, "icepop": _icepop, "rft": _rft}
