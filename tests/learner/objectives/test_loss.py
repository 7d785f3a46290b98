"""What is added to every objective's loss, and what is left out of it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.objectives.loss import token_losses
from learner.objectives.parts.kl import kl_k3
from learner.objectives.parts.objective import TokenTensors
from protocol.config import LossSettings


def test_nan_at_an_untrained_token_does_not_spread() -> None:
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    tokens = TokenTensors(logp, torch.tensor([-1.0, -2.0]), torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 0.0]))
    losses = token_losses(tokens, LossSettings())
    assert losses.tolist() == [-1.0, 0.0]


@given(st.lists(st.floats(-10, 0), min_size=1, max_size=20), st.lists(st.floats(-10, 0), min_size=20, max_size=20))
def test_k3_is_never_negative_and_zero_between_equals(policy: list[float], other: list[float]) -> None:
    logp, reference_logp = torch.tensor(policy), torch.tensor(other[: len(policy)])
    assert (kl_k3(logp, reference_logp) >= -1e-5).all()
    assert not kl_k3(logp, logp).any()
