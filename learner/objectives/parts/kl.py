"""KL to the starting policy, estimated at the sampled tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.ratios import MAX_LOG_RATIO

if TYPE_CHECKING:
    from torch import Tensor


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) at tokens of the policy: `exp(d) - 1 - d`, `d = ref - logp`."""
    difference = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference.exp() - 1 - difference
