"""Trajectories to samples: what is refused and counted, what is masked, and that everything lies at its predictor."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.objectives.parts.averaging import normaliser
from learner.objectives.registry import averaging_of
from learner.objectives.samples import has_signal, make_samples
from protocol.config import LossSettings, Settings
from protocol.messages import NOT_SAMPLED, Trajectory, Turn
from tiny.trajectories import random_batch, random_trajectory

VOCABULARY = 512
SETTINGS = Settings.model_validate(
    {"model": {"max_context": 64}, "episode": {"max_turn_tokens": 8}, "learner": {"loss": {"length_threshold": 100}}}
)


def phase(which: str, **loss: object) -> Settings:
    learner = SETTINGS.learner.model_copy(update={"loss": SETTINGS.learner.loss.model_copy(update=loss)})
    return SETTINGS.model_copy(update={"phase": which, "learner": learner})


def pair(**changes: object) -> list[Trajectory]:
    """A success and a failure of one group, the first with `changes`."""
    first, second = random_batch(np.random.default_rng(0), [30, 30], group_size=2)
    return [msgspec.structs.replace(first, **changes), second]


def spoiled(name: str, index: int, value: float) -> np.ndarray:
    array = np.array(getattr(pair()[0], name))
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("nan_reward", {"reward": float("nan")}),
        ("nan_reward", {"reward": float("inf")}),
        ("vocabulary", {"token_ids": spoiled("token_ids", 7, VOCABULARY)}),
        ("vocabulary", {"token_ids": spoiled("token_ids", 0, -1)}),
        ("nan_logprob", {"logprobs": spoiled("logprobs", pair()[0].turns[0].start, np.nan)}),
        ("nan_logprob", {"logprobs": spoiled("logprobs", pair()[0].turns[0].start, -np.inf)}),
        ("nan_logprob", {"logprobs": spoiled("logprobs", pair()[0].turns[0].start, 0.5)}),
        ("malformed", {"logprobs": np.zeros(29, np.float32)}),
        ("malformed", {"turns": [Turn(start=5, end=31)]}),
        ("malformed", {"turns": [Turn(start=9, end=5)]}),
    ],
)
def test_what_must_not_be_trained_on_is_left_out_and_counted(reason: str, changes: dict[str, object]) -> None:
    samples, left_out = make_samples(pair(**changes), SETTINGS, 0, VOCABULARY)
    assert left_out == {reason: 1}
    assert len(samples) == 1
    assert not has_signal(samples)  # alone in its group, the other member has no advantage


def test_a_trajectory_over_the_context_is_left_out() -> None:
    batch = random_batch(np.random.default_rng(0), [30, 64, 65, 20], group_size=4)
    samples, left_out = make_samples(batch, SETTINGS, 0, VOCABULARY)
    assert left_out == {"too_long": 1}
    assert [len(s) for s in samples] == [30, 64, 20]


def test_a_group_of_equal_rewards_has_no_signal() -> None:
    rng = np.random.default_rng(0)
    same = [random_trajectory(rng, 20, member=i, resolved=True) for i in range(3)]
    samples, left_out = make_samples(same, SETTINGS, 0, VOCABULARY)
    assert not has_signal(samples)
    assert has_signal(samples, without_rewards=True)  # a value or a teacher teaches from them
    assert not left_out
    mixed = [*same, random_trajectory(rng, 20, member=3, resolved=False)]
    assert has_signal(make_samples(mixed, SETTINGS, 0, VOCABULARY)[0])


@given(st.integers(0, 1000), st.integers(2, 64), st.integers(0, 9))
def test_everything_lies_at_the_position_that_predicts_it(seed: int, length: int, version: int) -> None:
    rng = np.random.default_rng(seed)
    group = [random_trajectory(rng, length, member=i, resolved=i == 0, num_turns=2) for i in range(2)]
    for trajectory, sample in zip(group, make_samples(group, SETTINGS, version, VOCABULARY)[0], strict=True):
        assert sample.weights[-1] == 0
        for t in range(length - 1):
            assert sample.token_ids[t] == trajectory.token_ids[t]
            assert sample.targets[t] == trajectory.token_ids[t + 1]
            assert sample.weights[t] == trajectory.loss_mask[t + 1]
            if sample.weights[t]:
                assert sample.behaviour[t] == trajectory.logprobs[t + 1]
                assert sample.staleness[t] == version
                assert sample.advantages[t] == (1 if trajectory.resolved else -1)


@pytest.mark.parametrize(
    ("cached", "versions", "behind"),
    [
        (None, [1, 1, 1], [False, False, False]),
        (1, [1, 1, 1], [False, False, False]),
        (0, [1, 1, 1], [True, True, True]),  # a prompt that an older policy had read
        (None, [0, 1, 1], [False, True, True]),  # new weights in the middle of the turn
        (2, [2, 3, 2], [False, True, False]),
    ],
)
def test_what_was_sampled_behind_keys_and_values_of_older_weights_is_marked(
    cached: int | None, versions: list[int], behind: list[bool]
) -> None:
    made = random_trajectory(np.random.default_rng(0), 8, member=0, resolved=True)
    mask, stamps = np.zeros(8, np.uint8), np.full(8, NOT_SAMPLED, np.int32)
    mask[4:7], stamps[4:7] = 1, versions
    turn = Turn(start=4, end=7, cached_version=cached)
    trajectory = msgspec.structs.replace(made, turns=[turn], loss_mask=mask, versions=stamps)
    other = random_trajectory(np.random.default_rng(1), 8, member=1, resolved=False)
    sample = make_samples([trajectory, other], SETTINGS, 3, VOCABULARY)[0][0]
    assert sample.behind_older.tolist() == [False, False, False, *behind, False, False]


def test_rft_trains_on_readable_turns_of_successes_only() -> None:
    rng = np.random.default_rng(0)
    success = random_trajectory(rng, 40, resolved=True, format_errors=True, member=0)
    failure = random_trajectory(rng, 40, resolved=False, member=1)
    (sample,), left_out = make_samples([success, failure], phase("rft"), 0, VOCABULARY)
    assert left_out == {"unsolved": 1}
    assert sample.token_ids.tolist() == success.token_ids.tolist()
    trained = {t + 1 for t in np.flatnonzero(sample.weights)}
    readable = {t for turn in success.turns[1:] for t in range(turn.start, turn.end)}
    assert trained == readable
    assert set(sample.advantages[sample.weights > 0]) == {1.0}


@pytest.mark.parametrize(
    ("loss", "sums", "divisor"),
    [
        ({"name": "dapo"}, [10, 30], 40),
        ({"name": "gspo"}, [1, 1], 2),
        ({"name": "gspo", "averaging": "token"}, [10, 30], 40),
        ({"name": "dapo", "averaging": "sequence"}, [1, 1], 2),
        ({"name": "dr_grpo"}, [10 / 64, 30 / 64], 2),
    ],
)
def test_tokens_are_averaged_as_the_objective_or_the_setting_says(
    loss: dict[str, str], sums: list[float], divisor: float
) -> None:
    batch = random_batch(np.random.default_rng(0), [21, 61], group_size=2, num_turns=1)
    samples, _ = make_samples(batch, phase("rl", **loss), 0, VOCABULARY)
    assert [float(s.weights.sum()) for s in samples] == pytest.approx(sums)
    averaging = averaging_of(LossSettings(**loss))
    assert normaliser(averaging, [s.weights for s in samples], [s.share for s in samples]) == pytest.approx(divisor)


def test_a_branching_episode_is_one_in_the_normaliser() -> None:
    paths, nothing = [np.array([0.5, 0.5]), np.array([0.5, 0.0])], np.zeros(2)
    assert normaliser("constant", [*paths, *paths, nothing], [2 / 3, 1 / 3, 0.5, 0.5, 1.0]) == pytest.approx(2)
