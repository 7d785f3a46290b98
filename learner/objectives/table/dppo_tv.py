"""A mask by total variation instead of a clip by ratio: rare tokens may move far, common ones may not.

    D = |pi(t) - mu(t)|, the total variation between "this token" and "another one" under both
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


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    new, old = tokens.logprobs.detach().exp(), tokens.behaviour.exp()
    return masked_loss(tokens, (new - old).abs(), settings.max_divergence)


OBJECTIVE = Objective(
    loss=_loss, advantages=group_normalised, averaging="token", reads=("max_divergence",), corrects=True
)
