"""REINFORCE with the mean of the group's other members as the baseline.

    A = R - mean of the other members' R
    loss(t) = -A log pi(t), the sum over each episode / max_context, then the mean

Source: RLOO, Ahmadian et al., arXiv 2402.14740; Kool et al., 2019.

It holds on the policy that sampled: beside stale episodes set truncate_importance.
A branching episode: its advantage at all its tokens; all its samples are summed as one episode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.advantages import leave_one_out
from learner.objectives.parts.objective import Objective, TokenTensors
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    return -tokens.logprobs * tokens.advantages


OBJECTIVE = Objective(loss=_loss, advantages=leave_one_out, averaging="constant")
