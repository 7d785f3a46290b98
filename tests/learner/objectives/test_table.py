"""Every objective of the table against its slow reference, and the laws that all of them obey.

An objective's reference is in `table/test_NAME.py`: `reference(tokens, t, settings)` gives the loss of token t and its
derivative by the token's log-prob, `advantages(rewards)` the advantages of a group.
"""

from __future__ import annotations

from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from learner.objectives.loss import token_losses
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.registry import checked_objective, markdown, objective_named, rows
from protocol.config import LossSettings
from protocol.errors import ConfigError
from protocol.objectives import objectives
from tests.learner.objectives.slow import Tokens

ROOT = Path(__file__).parents[3]
OBJECTIVES = list(objectives())
REFERENCES: dict[str, Any] = {n: import_module(f"tests.learner.objectives.table.test_{n}") for n in OBJECTIVES}
NUM_SEQUENCES = 3
CHANGES: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "bounded": {"dual_clip": 1.5, "max_divergence": 0.02},
    "truncated": {"truncate_importance": 1.2},
}


def random_tokens(
    seed: int, count: int, spread: float = 0.5, truncated: bool = False
) -> tuple[TokenTensors, np.ndarray]:
    """Tokens of `NUM_SEQUENCES` sequences in float64, some with weight 0, and the sequence of each."""
    rng = np.random.default_rng(seed)
    logp = rng.normal(-2, 0.5, count)
    behaviour, proximal = logp + rng.normal(0, spread, count), logp + rng.normal(0, spread, count)
    sequence = np.sort(rng.integers(0, NUM_SEQUENCES, count))
    weights = rng.integers(0, 2, count).astype(np.float64)
    log_ratio = logp - (proximal if truncated else behaviour)
    means = [
        log_ratio[(sequence == k) & (weights > 0)].mean() if ((sequence == k) & (weights > 0)).any() else 0
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
        rng.normal(size=count),
        rng.normal(size=count),
    )
    return TokenTensors(*map(torch.tensor, tensors)), sequence


def loss_and_slope(tokens: TokenTensors, loss: LossSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, and the derivative of each by its token's log-prob."""
    logp = tokens.logprobs.clone().requires_grad_()
    losses = token_losses(replace(tokens, logprobs=logp), loss)
    (slopes,) = torch.autograd.grad(losses.sum(), logp)
    return losses.detach(), slopes


def as_lists(tokens: TokenTensors, sequence: np.ndarray, truncated: bool) -> Tokens:
    """What a reference sees; the proximal policy takes the sampler's place in truncated importance sampling."""
    assert tokens.proximal is not None and tokens.reference is not None
    assert tokens.values is not None and tokens.returns is not None
    return Tokens(
        logp=tokens.logprobs.tolist(),
        behaviour=(tokens.proximal if truncated else tokens.behaviour).tolist(),
        proximal=tokens.proximal.tolist(),
        advantage=tokens.advantages.tolist(),
        sequence=sequence.tolist(),
        weight=tokens.weights.tolist(),
        value=tokens.values.tolist(),
        returns=tokens.returns.tolist(),
        reference=tokens.reference.tolist(),
    )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_loss_and_gradient_equal_the_formula(name: str, change: str, seed: int, count: int) -> None:
    loss, truncated = LossSettings(name=name, **CHANGES[change]), change == "truncated"
    if truncated and objective_named(name).corrects:
        with pytest.raises(ConfigError, match="truncate-importance does not go with"):
            checked_objective(loss)
        return
    tokens, sequence = random_tokens(seed, count, truncated=truncated)
    losses, slopes = loss_and_slope(tokens, loss)
    listed, reference = as_lists(tokens, sequence, truncated), REFERENCES[name].reference
    expected = np.array([reference(listed, t, loss) if listed.weight[t] > 0 else (0.0, 0.0) for t in range(count)])
    if truncated:
        assert tokens.proximal is not None
        expected *= (tokens.proximal - tokens.behaviour).exp().clamp(max=1.2).numpy()[:, None]
    np.testing.assert_allclose(losses.numpy(), expected[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(slopes.numpy(), expected[:, 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(rewards=st.lists(st.floats(-2, 2), min_size=1, max_size=12))
@settings(max_examples=30)
def test_advantages_equal_the_formula(name: str, rewards: list[float]) -> None:
    got = objective_named(name).advantages(rewards)
    if np.ptp(rewards) == 0 or np.ptp(rewards) > 1e-6:  # between them rounding decides what is equal
        np.testing.assert_allclose(got, REFERENCES[name].advantages(rewards), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), data=st.data())
@settings(max_examples=12, deadline=None)
def test_order_splitting_and_padding_change_nothing(name: str, seed: int, count: int, data: st.DataObject) -> None:
    tokens, _ = random_tokens(seed, count)
    loss = LossSettings(name=name, kl_coef=0.1, entropy_coef=0.01)
    whole = token_losses(tokens, loss)
    order = data.draw(st.permutations(range(count)))
    torch.testing.assert_close(token_losses(each(tokens, lambda t: t[order]), loss), whole[order])
    cut = data.draw(st.integers(0, count))
    parts = [
        token_losses(each(tokens, lambda t, part=part: t[part]), loss) for part in (slice(0, cut), slice(cut, None))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    padded = each(tokens, lambda t: torch.cat([t, torch.zeros(5, dtype=t.dtype)]))
    torch.testing.assert_close(token_losses(padded, loss), torch.cat([whole, torch.zeros(5).double()]))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not objective_named(name).needs_reference])
def test_equal_policies_give_the_plain_policy_gradient(name: str) -> None:
    tokens, _ = random_tokens(1, 20, spread=0.0)
    _, slopes = loss_and_slope(replace(tokens, behaviour=tokens.logprobs, proximal=None), LossSettings(name=name))
    torch.testing.assert_close(slopes, -tokens.advantages * (tokens.weights > 0))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_log_probs_stay_finite(name: str) -> None:
    logp = torch.tensor([-1e4, -1e-6, -1e4, -1e-6], requires_grad=True)
    behaviour = torch.tensor([-1e-6, -1e4, -1e-6, -1e4])
    tokens = TokenTensors(
        logp,
        behaviour,
        torch.tensor([1.0, 1.0, -1.0, -1.0]),
        torch.ones(4),
        sequence_log_ratio=torch.tensor([-1e4, 1e4, -1e4, 1e4]),
        reference=behaviour,
        entropy=torch.ones(4),
        values=torch.zeros(4),
        returns=torch.ones(4),
    )
    losses = token_losses(tokens, LossSettings(name=name, kl_coef=0.1, entropy_coef=0.1))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert logp.grad is not None
    assert torch.isfinite(logp.grad).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_reads_the_settings_that_it_names_and_no_others(name: str) -> None:
    read: set[str] = set()

    class Recorded:
        def __getattr__(self, setting: str) -> Any:
            read.add(setting)
            return getattr(LossSettings(name=name, dual_clip=1.5), setting)

    tokens, _ = random_tokens(0, 10)
    objective = objective_named(name)
    objective.loss(tokens, Recorded())  # type: ignore[arg-type]
    if objective.targets is not None:
        objective.targets(*np.ones((4, 3)), Recorded())  # type: ignore[arg-type]
    assert read == set(objective.reads)


def test_every_objective_says_what_it_is_its_formula_and_its_source() -> None:
    for row in rows():
        assert row.summary.endswith(".") and "\n" not in row.summary, row.name
        assert row.summary == objectives()[row.name]
        assert "loss(t) = " in row.formula, row.name
        assert row.source.endswith("."), row.name


def test_the_docs_table_is_what_the_registry_prints() -> None:
    assert markdown() in (ROOT / "docs" / "65-objectives.md").read_text()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean dapo"):
        LossSettings(name="dappo")


def each(tokens: TokenTensors, change: Any) -> TokenTensors:
    values = {f.name: getattr(tokens, f.name) for f in fields(tokens)}
    return TokenTensors(**{name: None if value is None else change(value) for name, value in values.items()})
