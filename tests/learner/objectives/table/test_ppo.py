"""PPO's slow reference, its gradient through the values, and advantages over packed sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.objectives.loss import token_losses
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.registry import checked_objective, objective_named
from protocol.config import LossSettings
from protocol.errors import ConfigError
from tests.learner.objectives import slow

advantages = list


def reference(x, t, s):
    loss, slope = slow.clipped(slow.ratio(x.logp[t], x.behaviour[t]), x.advantage[t], s)
    return loss + s.value_coef * (x.value[t] - x.returns[t]) ** 2 / 2, slope


def test_values_are_drawn_to_the_returns() -> None:
    values = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    tokens = TokenTensors(
        *torch.zeros(3, 3), weights=torch.tensor([1.0, 1.0, 0.0]), values=values, returns=torch.tensor([1.0, 0.0, 0.0])
    )
    token_losses(tokens, LossSettings(name="ppo", value_coef=0.2)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.2 * -0.5, 0.2 * -1.0, 0.0])


@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    gamma=st.floats(0.1, 1),
    decay=st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_targets_of_packed_sequences_are_those_of_each_alone(
    seed: int, lengths: list[int], gamma: float, decay: float
) -> None:
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(len(lengths)), lengths)
    values, trained = rng.normal(size=len(documents)), rng.random(len(documents)) < 0.6
    rewards = rng.normal(size=len(lengths))[documents]
    targets = objective_named("ppo").targets
    assert targets is not None
    loss = LossSettings(name="ppo", gamma=gamma, gae_lambda=decay)
    got = targets(values, rewards, documents, trained, loss)
    for document in range(len(lengths)):
        mine = (documents == document) & trained
        if mine.any():
            expected = slow.gae(values[mine].tolist(), float(rewards[mine][0]), gamma, decay)
            np.testing.assert_allclose([some[mine] for some in got], expected, rtol=1e-5, atol=1e-6)
    assert not got[0][~trained].any()
    assert not got[1][~trained].any()


def test_penalties_on_advantages_are_refused() -> None:
    with pytest.raises(ConfigError, match="format-penalty does not go with ppo"):
        checked_objective(LossSettings(name="ppo", format_penalty=0.1))
