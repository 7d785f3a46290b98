"""Rewards to advantages, against the paper's formula and the laws of a normalised group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.objectives.advantage import format_error_reward, length_penalty, token_advantages
from learner.objectives.parts.advantages import group_normalised
from protocol.config import Settings
from tiny.trajectories import random_batch, random_trajectory


@pytest.mark.parametrize(
    ("turns", "penalty"), [(1, 0.0), (9, 0.0), (10, 0.0), (11, -1 / 30), (25, -0.5), (40, -1.0), (99, -1.0)]
)
def test_penalty_of_stage_1_grows_from_10_turns_to_minus_1_at_40(turns: int, penalty: float) -> None:
    assert length_penalty(turns, max_turns=40, threshold=10) == pytest.approx(penalty)


def test_penalty_is_off_when_the_threshold_is_not_below_the_most_turns() -> None:
    assert length_penalty(8, max_turns=8, threshold=8) == 0


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=20))
def test_group_advantages_have_mean_0_and_std_1_or_are_all_0(rewards: list[float]) -> None:
    advantages = group_normalised(rewards)
    if advantages.any():
        assert advantages.mean() == pytest.approx(0, abs=1e-6)
        assert advantages.std() == pytest.approx(1)
        assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()
    else:
        assert np.ptp(rewards) < 1e-6


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=20), st.floats(0.1, 10), st.floats(-5, 5))
def test_shift_and_scale_of_rewards_change_nothing(rewards: list[float], scale: float, shift: float) -> None:
    if np.ptp(rewards) > 1e-3:
        moved = group_normalised([scale * r + shift for r in rewards])
        np.testing.assert_allclose(moved, group_normalised(rewards), atol=1e-4)


def test_every_token_of_an_episode_has_its_groups_advantage() -> None:
    settings = Settings.model_validate({"learner": {"loss": {"length_threshold": 100}}})
    batch = random_batch(np.random.default_rng(0), [20, 30, 25, 22], group_size=2)
    by_group = token_advantages(batch, settings)
    shuffled = token_advantages(batch[::-1], settings)[::-1]
    for got, again, expected, trajectory in zip(by_group, shuffled, [1, -1, 1, -1], batch, strict=True):
        assert got.tolist() == again.tolist() == [expected] * len(trajectory.token_ids)


def test_long_successes_are_worth_less_than_short_ones() -> None:
    settings = Settings.model_validate({"episode": {"max_turns": 8}, "learner": {"loss": {"length_threshold": 4}}})
    rng = np.random.default_rng(0)
    group = [
        random_trajectory(rng, 40, num_turns=turns, resolved=solved, member=i)
        for i, (turns, solved) in enumerate([(2, True), (6, True), (8, True), (3, False)])
    ]
    rewards = np.array([1, 1 + (4 - 6) / 4, 1 - 1, 0])
    expected = (rewards - rewards.mean()) / rewards.std()
    got = [a[0] for a in token_advantages(group, settings)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_step_rewards_move_single_turns_and_not_the_group() -> None:
    settings = Settings.model_validate({"learner": {"loss": {"length_threshold": 100}}})
    rng = np.random.default_rng(0)
    clean = random_trajectory(rng, 40, num_turns=2, resolved=True, member=0)
    faulty = random_trajectory(rng, 40, num_turns=2, resolved=False, member=1, format_errors=True)
    plain = token_advantages([clean, faulty], settings)
    shaped = token_advantages([clean, faulty], settings, [format_error_reward(0.4)])
    mean = -0.4 / 4
    first, second = faulty.turns
    np.testing.assert_allclose((shaped[1] - plain[1])[first.start : first.end], -0.4 - mean, atol=1e-6)
    np.testing.assert_allclose((shaped[1] - plain[1])[second.start : second.end], -mean, atol=1e-6)
    assert (shaped[1] - plain[1])[: first.start].tolist() == [0.0] * first.start


def test_shuffled_rewards_are_the_groups_own_and_say_nothing_of_a_member() -> None:
    settings = Settings.model_validate({"learner": {"loss": {"shuffle_rewards": True, "length_threshold": 100}}})
    rng = np.random.default_rng(0)
    successes = []
    for number in range(200):
        group = [random_trajectory(rng, 20, resolved=i < 2, member=i, group=f"g{number}") for i in range(8)]
        dealt = [advantage[0] for advantage in token_advantages(group, settings)]
        assert sorted(dealt) == pytest.approx(sorted(group_normalised([1, 1, 0, 0, 0, 0, 0, 0])), abs=1e-6)
        assert dealt == [advantage[0] for advantage in token_advantages(group, settings)]
        successes.append(dealt[:2])
    assert abs(np.mean(successes)) < 0.3  # six standard errors of a mean of 400 draws
