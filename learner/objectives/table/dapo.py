"""Clip by token with a wider upper bound, averaged over the batch's tokens.

    r = pi(t) / mu(t), mu: the policy that sampled
    loss(t) = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)

Source: DAPO, Yu et al., arXiv 2503.14476, eq. 8; dual clip: Ye et al., arXiv 1912.09729.

A branching episode: its advantage at all its tokens, each sampled token once.
"""

from __future__ import annotations

from learner.objectives.parts.advantages import group_normalised
from learner.objectives.parts.objective import Objective
from learner.objectives.parts.ratios import clip_loss

OBJECTIVE = Objective(
    loss=clip_loss, advantages=group_normalised, averaging="token", reads=("eps_low", "eps_high", "dual_clip")
)
