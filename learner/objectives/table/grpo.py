"""Clip by token, every episode weighing the same; advantages in units of the group's standard deviation.

    r = pi(t) / mu(t), mu: the policy that sampled; A = (R - mean) / std over the group
    loss(t) = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), then the mean over each episode, then over episodes

Source: GRPO, Shao et al., DeepSeekMath, arXiv 2402.03300, eq. 3 (eps_low = eps_high there, and kl_coef 0.04 with k3).

A branching episode: its advantage at all its tokens; all its samples together weigh as one episode.
"""

from __future__ import annotations

from learner.objectives.parts.advantages import group_normalised
from learner.objectives.parts.objective import Objective
from learner.objectives.parts.ratios import clip_loss

OBJECTIVE = Objective(
    loss=clip_loss, advantages=group_normalised, averaging="sequence", reads=("eps_low", "eps_high", "dual_clip")
)
