"""The slow reference of on-policy distillation, and that it moves the policy to its teacher."""

from __future__ import annotations

import pytest
import torch

from learner.objectives.loss import token_losses
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.registry import checked_objective
from protocol.config import LossSettings
from protocol.errors import ConfigError
from tests.learner.objectives import slow

advantages = list


def reference(x, t, s):
    weighed = slow.ratio(x.logp[t], x.behaviour[t]) * (x.logp[t] - x.reference[t])
    return weighed, weighed


def test_a_policy_that_samples_becomes_its_teacher() -> None:
    torch.manual_seed(0)
    teacher = torch.tensor([0.6, 0.3, 0.1]).log()
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    for _ in range(300):
        logp = logits.log_softmax(0)
        sampled = torch.multinomial(logp.exp().detach(), 256, replacement=True)
        tokens = TokenTensors(
            logp[sampled], logp[sampled].detach(), torch.zeros(256), torch.ones(256), reference=teacher[sampled]
        )
        optimizer.zero_grad()
        token_losses(tokens, LossSettings(name="distill")).mean().backward()
        optimizer.step()
    assert logits.softmax(0).tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.05)


def test_no_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model directory of the teacher"):
        checked_objective(LossSettings(name="distill"))
