"""As decoupled, but a token whose learner and sampler disagree beyond a band is masked instead of truncated.

    w = prox(t) / mu(t) where band_low <= prox(t) / mu(t) <= band_high, else 0; r = pi(t) / prox(t)
    loss(t) = -w min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)

Source: IcePop, Ling team, arXiv 2510.18855.

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
    weight = ratio_of(proximal, tokens.behaviour)
    inside = (weight >= settings.band_low) & (weight <= settings.band_high)
    return inside * weight * clipped(ratio_of(tokens.logprobs, proximal), tokens.advantages, settings)


OBJECTIVE = Objective(
    loss=_loss,
    advantages=group_normalised,
    averaging="token",
    reads=("eps_low", "eps_high", "dual_clip", "band_low", "band_high"),
    corrects=True,
)
