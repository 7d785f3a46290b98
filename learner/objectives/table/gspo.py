"""Clip by sequence: one ratio for all its tokens, averaged over sequences.

    s = exp(mean over the sequence of log(pi(t) / mu(t))), r = sg(s) pi(t) / sg(pi(t))
    loss(t) = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)

Source: GSPO, Zheng et al., arXiv 2507.18071, eq. 7; by token: eq. 17.

A branching episode: each of its samples is a sequence with a ratio of its own; together they weigh as one episode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.advantages import group_normalised
from learner.objectives.parts.objective import Objective, TokenTensors
from learner.objectives.parts.ratios import clipped, sequence_ratio_of
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    return clipped(sequence_ratio_of(tokens), tokens.advantages, settings)


OBJECTIVE = Objective(
    loss=_loss,
    advantages=group_normalised,
    averaging="sequence",
    reads=("eps_low", "eps_high", "dual_clip"),
    sequence_ratio=True,
)
