"""What is added to every objective's loss, and what is left out of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
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


SLOW_KL = {  # value and derivative by log pi of each estimator
    "k1": lambda d: (d, d),
    "k2": lambda d: (d * d / 2, d),
    "k3": lambda d: (math.exp(-d) - 1 + d, 1 - math.exp(-d)),
}


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("estimator", SLOW_KL)
@given(policy=st.floats(-10, 0), reference=st.floats(-10, 0), behaviour=st.floats(-10, 0))
@settings(max_examples=30)
def test_kl_estimators_equal_their_formulas(
    estimator: str, truncated: bool, policy: float, reference: float, behaviour: float
) -> None:
    logp = torch.tensor([policy], dtype=torch.float64, requires_grad=True)
    tokens = TokenTensors(
        logprobs=logp,
        behaviour=torch.tensor([behaviour]).double(),
        advantages=torch.zeros(1).double(),
        weights=torch.ones(1).double(),
        reference=torch.tensor([reference], dtype=torch.float64),
    )
    loss = LossSettings(kl_coef=0.5, kl_estimator=estimator, truncate_importance=1.2 if truncated else None)
    losses = token_losses(tokens, loss)
    losses.sum().backward()
    value, slope = SLOW_KL[estimator](policy - reference)
    weight = 0.5 * min(math.exp(policy - float(torch.tensor(behaviour))), 1.2) if truncated else 0.5
    assert logp.grad is not None
    assert (losses.item(), logp.grad.item()) == pytest.approx((weight * value, weight * slope), rel=1e-5, abs=1e-9)


def test_dapo_with_truncated_importance_is_decoupled() -> None:
    torch.manual_seed(0)
    logp, behaviour, proximal, advantages = torch.randn(4, 50)
    tokens = TokenTensors(logp, behaviour, advantages, torch.ones(50), proximal=proximal)
    truncated = token_losses(tokens, LossSettings(truncate_importance=2.0))
    torch.testing.assert_close(truncated, token_losses(tokens, LossSettings(name="decoupled", truncate_weight=2.0)))
