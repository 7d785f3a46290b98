"""Ratios of probabilities and what bounds them. Tensor methods only: nothing here loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.objective import TokenTensors
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before `exp`: beyond it every objective has long been clipped, and infinity times zero
would be NaN."""


def ratio_of(new: Tensor, old: Tensor) -> Tensor:
    """`exp(new - old)`, finite."""
    return (new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped(ratio: Tensor, advantages: Tensor, settings: LossSettings) -> Tensor:
    """PPO's pessimistic surrogate with asymmetric bounds and, if asked, the dual clip of Ye et al. (1912.09729)."""
    bounded = ratio.clamp(1 - settings.eps_low, 1 + settings.eps_high)
    surrogate = (ratio * advantages).minimum(bounded * advantages)
    if settings.dual_clip is not None:
        surrogate = surrogate.maximum(settings.dual_clip * advantages).where(advantages < 0, surrogate)
    return -surrogate


def clip_loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    """`clipped` with each token's ratio to the policy that sampled it."""
    return clipped(ratio_of(tokens.logprobs, tokens.behaviour), tokens.advantages, settings)


def masked_loss(tokens: TokenTensors, divergence: Tensor, bound: float) -> Tensor:
    """`-ratio * advantage`; no gradient, nor value, where the advantage pushes a ratio further beyond the bound."""
    ratio = ratio_of(tokens.logprobs, tokens.behaviour)
    leaving = ((tokens.advantages > 0) & (ratio > 1)) | ((tokens.advantages < 0) & (ratio < 1))
    kept = ~(leaving & (divergence > bound))
    return -(ratio * tokens.advantages).where(kept, ratio.new_zeros(()))


def proximal_of(tokens: TokenTensors) -> Tensor:
    """Log-probs under the weights at the start of the step, without a gradient."""
    return (tokens.logprobs if tokens.proximal is None else tokens.proximal).detach()


def old_policy(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    """What ratios are taken against: the policy that sampled, or with `truncate_importance` the start of the step."""
    return tokens.behaviour if settings.truncate_importance is None else proximal_of(tokens)


def sequence_ratio_of(tokens: TokenTensors) -> Tensor:
    """The sequence's ratio at each of its tokens, with the gradient of the token's own log-prob (arXiv 2507.18071,
    eq. 17)."""
    assert tokens.sequence_log_ratio is not None, "this objective needs the mean log-ratio of every token's sequence"
    sequence = tokens.sequence_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().detach()
    return sequence * (tokens.logprobs - tokens.logprobs.detach()).exp()
