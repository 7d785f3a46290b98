"""Packing: nothing lost, nothing over the budget, documents apart, groups balanced, and the same plan every time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.objectives.samples import make_samples
from learner.packing import attention_length_of, plan_bins, row_length, used_share
from learner.training.micro_batch import collate
from protocol.config import Settings
from tiny.trajectories import paper_lengths, random_batch

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 4), st.integers(100, 400), st.floats(10, 1e6))
@settings(deadline=None)
def test_every_sample_is_in_one_bin_within_the_budget(
    lengths: list[int], num_groups: int, budget: int, attention_length: float
) -> None:
    plan = plan_bins(lengths, num_groups, budget, attention_length)
    assert sorted(itertools.chain(*itertools.chain(*plan))) == list(range(len(lengths)))
    assert all(len(row) == num_groups for row in plan)
    assert all(sum(lengths[i] for i in members) <= budget for row in plan for members in row)
    assert plan == plan_bins(lengths, num_groups, budget, attention_length)


def test_a_sample_over_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="101 tokens does not fit a micro-batch of 100"):
        plan_bins([3, 101], 1, 100)


@pytest.mark.parametrize(
    ("context", "batch", "num_groups"), [(65_536, 128, 16), (131_072, 256, 16), (131_072, 256, 32)]
)
def test_the_papers_batches_use_97_percent_of_the_positions_and_balance_attention(
    context: int, batch: int, num_groups: int
) -> None:
    attention_length = attention_length_of(72_000_000_000, 80, 8192)
    shares, balances = [], []
    for seed in range(5):
        lengths = paper_lengths(np.random.default_rng(seed), batch, context)
        plan = plan_bins(lengths, num_groups, 2 * context, attention_length)
        shares.append(used_share(plan, lengths, multiple=8))
        cost = [[sum(lengths[i] * (1 + lengths[i] / attention_length) for i in b) for b in row] for row in plan]
        balances.append(sum(map(sum, cost)) / sum(num_groups * max(row) for row in cost))
    assert np.mean(shares) >= 0.97
    assert np.mean(balances) >= 0.95


def test_documents_are_laid_end_to_end_with_restarting_positions() -> None:
    batch = random_batch(np.random.default_rng(0), [5, 3, 4], group_size=3)
    samples, _ = make_samples(batch, Settings(), version=0, vocab_size=512)
    packed = collate(samples, [0, 2], num_positions=12)
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]
    assert packed.documents.tolist() == [0] * 5 + [1] * 4 + [2] * 3
    assert packed.token_ids.tolist() == [*batch[0].token_ids, *batch[2].token_ids, 0, 0, 0]
    assert not packed.weights[9:].any()
    assert packed.num_documents == 2


@given(LENGTHS, st.integers(1, 4), st.integers(1, 8))
@settings(deadline=None)
def test_rows_are_multiples_that_hold_their_longest_bin(lengths: list[int], num_groups: int, multiple: int) -> None:
    plan = plan_bins(lengths, num_groups, 120)
    for row in plan:
        length = row_length(row, lengths, multiple)
        assert length % multiple == 0
        assert 0 <= length - max(sum(lengths[i] for i in b) for b in row) < max(multiple, 2)


def test_a_budget_below_the_context_is_refused_with_the_settings() -> None:
    with pytest.raises(ValueError, match=r"pack_tokens \(100\) must hold an episode of model.max_context \(2048\)"):
        Settings.model_validate({"learner": {"pack_tokens": 100}})
