"""REINFORCE with clipped importance weights: no token loses its gradient.

    r = pi(t) / mu(t), mu: the policy that sampled
    loss(t) = -sg(clip(r, 1 - eps_low, 1 + eps_high)) A log pi(t)

Source: CISPO, MiniMax-M1, arXiv 2506.13585, section 3.1 (run there without the lower bound, which is eps_low = 1).

A branching episode: its advantage at all its tokens, each sampled token once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.advantages import group_normalised
from learner.objectives.parts.objective import Objective, TokenTensors
from learner.objectives.parts.ratios import ratio_of
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    ratio = ratio_of(tokens.logprobs.detach(), tokens.behaviour)
    return -ratio.clamp(1 - settings.eps_low, 1 + settings.eps_high) * tokens.advantages * tokens.logprobs


OBJECTIVE = Objective(loss=_loss, advantages=group_normalised, averaging="token", reads=("eps_low", "eps_high"))
