"""On-policy distillation: every sampled token is graded by a teacher's log-prob; rewards are not looked at.

    d = sg(log pi(t) - log teacher(t)), r = pi(t) / mu(t), mu: the policy that sampled
    loss(t) = r d, whose gradient is that of the KL from the policy to the teacher at the policy's own tokens

Source: MiniLLM, Gu et al., arXiv 2306.08543; GKD, Agarwal et al., arXiv 2306.13649 (reverse KL, all tokens on policy).

The teacher has the run's own tokenizer: `--learner.loss.reference`, a frozen model at the learner, or
`--learner.loss.reference-endpoint`, a vLLM server.
A branching episode: each sampled token once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.parts.advantages import episode_reward
from learner.objectives.parts.objective import Objective, TokenTensors
from learner.objectives.parts.ratios import MAX_LOG_RATIO, ratio_of
from protocol.config import LossSettings

if TYPE_CHECKING:
    from torch import Tensor


def _loss(tokens: TokenTensors, settings: LossSettings) -> Tensor:
    assert tokens.reference is not None, "distill needs the log-probabilities of a teacher"
    distance = (tokens.logprobs.detach() - tokens.reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return ratio_of(tokens.logprobs, tokens.behaviour) * distance


OBJECTIVE = Objective(loss=_loss, advantages=episode_reward, averaging="token", needs_reference=True)
