"""The learning rate as a function of the step, so that a resume needs no scheduler state."""

from __future__ import annotations

import math

from protocol.config import LearnerSettings


def learning_rate(step: int, num_steps: int, learner: LearnerSettings) -> float:
    """Rate of step `step` (from 0) of `num_steps`: linear warm-up, then constant or half a cosine down to 0."""
    if step < learner.warmup_steps:
        return learner.lr * (step + 1) / learner.warmup_steps
    if learner.schedule == "constant":
        return learner.lr
    progress = (step - learner.warmup_steps) / max(1, num_steps - learner.warmup_steps)
    return learner.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
