"""GSPO's slow reference, and that it clips a sequence as a whole."""

import math

import torch

from learner.objectives.loss import token_losses
from learner.objectives.parts.objective import TokenTensors
from protocol.config import LossSettings
from tests.learner.objectives import slow

advantages = slow.group_normalised


def reference(x, t, s):
    return slow.clipped(math.exp(x.mean_log_ratio(t)), x.advantage[t], s)


def test_a_sequence_is_clipped_as_a_whole() -> None:
    logp = torch.linspace(-3, -1, 30, dtype=torch.float64, requires_grad=True)
    far = TokenTensors(
        logprobs=logp,
        behaviour=logp.detach(),  # each token alone is inside the bounds
        advantages=torch.ones(30).double(),
        weights=torch.ones(30).double(),
        sequence_log_ratio=torch.full((30,), 1.0).double(),
    )
    token_losses(far, LossSettings(name="gspo")).sum().backward()
    assert logp.grad is not None
    assert not logp.grad.any()
