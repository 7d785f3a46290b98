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


def proximal_of(tokens: TokenTensors) -> Tensor:
    """Log-probs under the weights at the start of the step, without a gradient."""
    return (tokens.logprobs if tokens.proximal is None else tokens.proximal).detach()


def sequence_ratio_of(tokens: TokenTensors) -> Tensor:
    """The sequence's ratio at each of its tokens, with the gradient of the token's own log-prob (arXiv 2507.18071,
    eq. 17)."""
    assert tokens.sequence_log_ratio is not None, "this objective needs the mean log-ratio of every token's sequence"
    sequence = tokens.sequence_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().detach()
    return sequence * (tokens.logprobs - tokens.logprobs.detach()).exp()
