"""GRPO without its two divisions: neither by the standard deviation nor by the episode's length.

    r = pi(t) / mu(t), mu: the policy that sampled; A = R - mean over the group
    loss(t) = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), the sum over each episode / max_context, then the mean

Source: Dr. GRPO, Liu et al., arXiv 2503.20783 (eps_low = eps_high there).

A branching episode: its advantage at all its tokens; all its samples are summed as one episode.
"""

from __future__ import annotations

from learner.objectives.parts.advantages import group_centred
from learner.objectives.parts.objective import Objective
from learner.objectives.parts.ratios import clip_loss

OBJECTIVE = Objective(
    loss=clip_loss, advantages=group_centred, averaging="constant", reads=("eps_low", "eps_high", "dual_clip")
)
