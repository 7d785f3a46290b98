"""A smooth gate instead of a clip: the gradient fades as the ratio leaves 1, sooner for negative advantages.

    r = pi(t) / mu(t), mu: the policy that sampled; tau = tau_positive where A > 0, else tau_negative
    loss(t) = -(4 / tau) sigmoid(tau (r - 1)) A, then the mean over each episode, then over episodes

Source: SAPO, Gao et al., arXiv 2511.20347.

A branching episode: its advantage at all its tokens; all its samples together weigh as one episode.
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
    ratio = ratio_of(tokens.logprobs, tokens.behaviour)
    gain, loss = _gate(ratio, settings.tau_positive), _gate(ratio, settings.tau_negative)
    return -gain.where(tokens.advantages > 0, loss) * tokens.advantages


def _gate(ratio: Tensor, tau: float) -> Tensor:
    return (tau * (ratio - 1)).sigmoid() * (4 / tau)


OBJECTIVE = Objective(
    loss=_loss, advantages=group_normalised, averaging="sequence", reads=("tau_positive", "tau_negative")
)
