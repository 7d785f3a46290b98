"""A mask by KL divergence instead of a clip by ratio: rare tokens may move far, common ones may not.

    D = mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi)) at t, the KL between "this token" and "another one"
    loss(t) = -M r A, r = pi(t) / mu(t); M = 0 where D > max_divergence and r leaves 1 the way A pushes it, else 1

Source: DPPO, Qi et al., arXiv 2602.04879, binary approximation.

mu: the policy that sampled. A branching episode: its advantage at all its tokens, each sampled token once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.advantages import group_normalised
from learner.objectives.parts.objective import Objective, TokenTensors
from learner.objectives.parts.ratios import masked_loss
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor


_ALMOST_1 = 1 - 1e-6  # the other token keeps a probability that float32 can tell from 0


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    logp = tokens.logprobs.detach()
    new, old = logp.exp().clamp(max=_ALMOST_1), tokens.behaviour.exp().clamp(max=_ALMOST_1)
    divergence = old * (tokens.behaviour - logp) + (1 - old) * ((-old).log1p() - (-new).log1p())
    return masked_loss(tokens, divergence, settings.max_divergence)


OBJECTIVE = Objective(
    loss=_loss, advantages=group_normalised, averaging="token", reads=("max_divergence",), corrects=True
)
