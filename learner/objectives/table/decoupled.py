"""Clip against the weights at the start of the step, times their truncated weight against the policy that sampled.

    w = min(prox(t) / mu(t), truncate_weight), r = pi(t) / prox(t)
    loss(t) = -w min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)

Source: decoupled PPO, Hilton et al., arXiv 2110.00641; AReaL, Fu et al., arXiv 2505.24298.

A branching episode: its advantage at all its tokens, each sampled token once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.advantages import group_normalised
from learner.objectives.parts.objective import Objective, TokenTensors
from learner.objectives.parts.ratios import clipped, proximal_of, ratio_of
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    proximal = proximal_of(tokens)
    weight = ratio_of(proximal, tokens.behaviour).clamp(max=settings.truncate_weight)
    return weight * clipped(ratio_of(tokens.logprobs, proximal), tokens.advantages, settings)


OBJECTIVE = Objective(
    loss=_loss,
    advantages=group_normalised,
    averaging="token",
    reads=("eps_low", "eps_high", "dual_clip", "truncate_weight"),
    corrects=True,
)
