"""Negative log-likelihood times the advantage; phase `rft` trains with it on successes, whose advantage is 1.

    loss(t) = -A log pi(t)

Source: rejection-sampling fine-tuning, arXiv 2508.03501.

A branching episode: its advantage at all its tokens, each sampled token once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.advantages import group_normalised
from learner.objectives.parts.objective import Objective, TokenTensors
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    return -tokens.logprobs * tokens.advantages


OBJECTIVE = Objective(loss=_loss, advantages=group_normalised, averaging="token")
