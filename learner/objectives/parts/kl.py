"""KL to the starting policy, estimated at the sampled tokens (Schulman, "Approximating KL divergence", 2020).

With `d = log pi - log ref` at a token of pi, the estimators of KL(pi || ref) are

    k1 = d            unbiased, of either sign
    k2 = d^2 / 2      never negative, biased
    k3 = exp(-d) - 1 + d   never negative, unbiased

A good estimate of the KL need not have the gradient of the KL. That of k1 is zero on average and teaches nothing, so k1
acts here as it does inside a reward: value `d`, gradient `d grad log pi`, which is the KL's own, and that of k2. That
of k3 is `(1 - exp(-d)) grad log pi`, its first order (Liu et al., arXiv 2510.01555).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.ratios import MAX_LOG_RATIO

if TYPE_CHECKING:
    from torch import Tensor


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """`d`, with the gradient of a reward's term: `d grad log pi`."""
    difference = (logprobs - reference).detach()
    score = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) * logprobs
    return difference + score - score.detach()


def kl_k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """`d^2 / 2`."""
    return (logprobs - reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).square() / 2


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """`exp(-d) - 1 + d`."""
    difference = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference.exp() - 1 - difference


ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
