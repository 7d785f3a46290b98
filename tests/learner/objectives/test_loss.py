"""Every objective against a slow NumPy reference that reads like its formula, and the laws that all of them obey."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.objectives.loss import TokenTensors, kl_k3, token_losses
from protocol.config import LossSettings

OBJECTIVES = ["dapo", "decoupled", "gspo", "icepop", "rft"]
NUM_SEQUENCES = 3


def reference(
    name: str,
    logp: list[float],
    behaviour: list[float],
    proximal: list[float],
    advantage: list[float],
    sequence: list[int],
    weight: list[float],
    s: LossSettings,
) -> list[float]:
    """Loss of every token, one at a time."""
    losses = []
    for t in range(len(logp)):
        if weight[t] == 0:
            losses.append(0.0)
            continue
        if name == "rft":
            losses.append(-logp[t] * advantage[t])
            continue
        if name == "dapo":
            ratio, outer = math.exp(logp[t] - behaviour[t]), 1.0
        elif name == "gspo":
            mine = [i for i in range(len(logp)) if sequence[i] == sequence[t] and weight[i] > 0]
            ratio, outer = math.exp(sum(logp[i] - behaviour[i] for i in mine) / len(mine)), 1.0
        else:
            ratio = math.exp(logp[t] - proximal[t])
            outer = math.exp(proximal[t] - behaviour[t])
            if name == "decoupled":
                outer = min(outer, s.truncate_weight)
            elif not s.band_low <= outer <= s.band_high:
                outer = 0.0
        surrogate = min(ratio * advantage[t], min(max(ratio, 1 - s.eps_low), 1 + s.eps_high) * advantage[t])
        if s.dual_clip is not None and advantage[t] < 0:
            surrogate = max(surrogate, s.dual_clip * advantage[t])
        losses.append(-outer * surrogate)
    return losses


def random_tokens(seed: int, count: int, spread: float = 0.5) -> tuple[TokenTensors, np.ndarray]:
    """Tokens of `NUM_SEQUENCES` sequences in float64, some with weight 0, and the sequence of each."""
    rng = np.random.default_rng(seed)
    logp = rng.normal(-2, 0.5, count)
    behaviour, proximal = logp + rng.normal(0, spread, count), logp + rng.normal(0, spread, count)
    sequence = np.sort(rng.integers(0, NUM_SEQUENCES, count))
    weights = rng.integers(0, 2, count).astype(np.float64)
    means = [
        (logp - behaviour)[(sequence == k) & (weights > 0)].mean() if ((sequence == k) & (weights > 0)).any() else 0
        for k in range(NUM_SEQUENCES)
    ]
    tensors = (
        logp,
        behaviour,
        rng.normal(0, 1, NUM_SEQUENCES)[sequence],
        weights,
        proximal,
        np.array(means)[sequence],
        rng.random(count),
        logp + rng.normal(0, spread, count),
    )
    return TokenTensors(*map(torch.tensor, tensors)), sequence


@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_objective_equals_its_formula(name: str, dual_clip: float | None, seed: int, count: int) -> None:
    tokens, sequence = random_tokens(seed, count)
    loss_settings = LossSettings(name=name, dual_clip=dual_clip)
    got = token_losses(tokens, loss_settings)
    assert tokens.proximal is not None
    expected = reference(
        name,
        tokens.logprobs.tolist(),
        tokens.behaviour.tolist(),
        tokens.proximal.tolist(),
        tokens.advantages.tolist(),
        sequence.tolist(),
        tokens.weights.tolist(),
        loss_settings,
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), data=st.data())
@settings(max_examples=25, deadline=None)
def test_order_splitting_and_padding_change_nothing(name: str, seed: int, count: int, data: st.DataObject) -> None:
    tokens, _ = random_tokens(seed, count)
    loss_settings = LossSettings(name=name, kl_coef=0.1, entropy_coef=0.01)
    whole = token_losses(tokens, loss_settings)
    order = data.draw(st.permutations(range(count)))
    torch.testing.assert_close(token_losses(_each(tokens, lambda t: t[order]), loss_settings), whole[order])
    cut = data.draw(st.integers(0, count))
    parts = [
        token_losses(_each(tokens, lambda t, part=part: t[part]), loss_settings)
        for part in (slice(0, cut), slice(cut, None))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    padded = _each(tokens, lambda t: torch.cat([t, torch.zeros(5, dtype=t.dtype)]))
    torch.testing.assert_close(token_losses(padded, loss_settings), torch.cat([whole, torch.zeros(5).double()]))


@pytest.mark.parametrize("name", ["dapo", "decoupled", "gspo", "icepop"])
def test_equal_policies_give_the_plain_policy_gradient(name: str) -> None:
    tokens, _ = random_tokens(1, 20, spread=0.0)
    logp = tokens.logprobs.clone().requires_grad_()
    tokens = replace(tokens, logprobs=logp, behaviour=logp.detach(), proximal=None)
    (tokens.weights * token_losses(tokens, LossSettings(name=name))).sum().backward()
    torch.testing.assert_close(logp.grad, -tokens.weights * tokens.advantages)


def test_gspo_clips_a_sequence_as_a_whole() -> None:
    tokens, sequence = random_tokens(3, 30)
    logp = tokens.logprobs.clone().requires_grad_()
    far = replace(
        tokens,
        logprobs=logp,
        sequence_log_ratio=torch.full((30,), 1.0).double(),
        advantages=torch.ones(30).double(),
        weights=torch.ones(30).double(),
    )
    token_losses(far, LossSettings(name="gspo")).sum().backward()
    assert not logp.grad.any()
    assert len(set(sequence)) > 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_log_probs_stay_finite(name: str) -> None:
    logp = torch.tensor([-1e4, -1e-6, -1e4, -1e-6], requires_grad=True)
    behaviour = torch.tensor([-1e-6, -1e4, -1e-6, -1e4])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    tokens = TokenTensors(
        logp,
        behaviour,
        advantages,
        torch.ones(4),
        sequence_log_ratio=torch.tensor([-1e4, 1e4, -1e4, 1e4]),
        reference=behaviour,
        entropy=torch.ones(4),
    )
    losses = token_losses(tokens, LossSettings(name=name, kl_coef=0.1, entropy_coef=0.1))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logp.grad).all()


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


def _each(tokens: TokenTensors, change) -> TokenTensors:
    return TokenTensors(**{f.name: change(getattr(tokens, f.name)) for f in fields(tokens)})
