"""Filters keep and remove what their names say, and every removal is counted."""

import msgspec
import numpy as np
import pytest

from learner.replay.filters import chain_of, mask_format_errors, run_chain
from protocol.config import Settings
from protocol.messages import Turn
from tiny.trajectories import finished_member, random_trajectory


def member(number, reward, **changes):
    return finished_member(number, resolved=reward > 0, reward=reward, **changes)


def outcome(members, **settings):
    filtered = run_chain(chain_of(Settings(**settings)), members)
    return [m.member for m in filtered.kept], filtered.removed


@pytest.mark.parametrize(
    ("rewards", "kept", "removed"),
    [
        ([0.0, 1.0, 0.0], [0, 1, 2], {}),
        ([0.0, 0.0, 0.0], [], {"no_signal": 3}),
        ([1.0, 1.0], [], {"no_signal": 2}),
        ([1.0], [], {"infrastructure": 1}),
        ([], [], {}),
    ],
)
def test_rl_needs_two_members_that_differ(rewards, kept, removed):
    assert outcome([member(i, r) for i, r in enumerate(rewards)]) == (kept, removed)


def test_groups_without_signal_are_kept_when_asked_for():
    assert outcome([member(0, 1.0), member(1, 1.0)], replay={"keep_no_signal": True}) == ([0, 1], {})


def test_overlong_members_are_kept():
    assert outcome([member(0, 0.0, overlong=True, end_reason="max_turns"), member(1, 1.0)]) == ([0, 1], {})


def test_rft_takes_honest_readable_successes():
    members = [member(0, 1.0), member(1, 0.0), member(2, 1.0, tampered=True), member(3, 1.0, num_readable_turns=0)]
    assert outcome(members, phase="rft") == ([0], {"successes_only": 2, "readable": 1})


def test_turns_that_could_not_be_read_carry_no_loss():
    made = random_trajectory(np.random.default_rng(0), 6)
    turns = [Turn(start=1, end=3, format_error=True), Turn(start=4, end=6)]
    mask = np.array([0, 1, 1, 0, 1, 1], np.uint8)
    trajectory = msgspec.structs.replace(made, turns=turns, loss_mask=mask)
    assert mask_format_errors(trajectory).loss_mask.tolist() == [0, 0, 0, 0, 1, 1]
    assert trajectory.loss_mask.tolist() == [0, 1, 1, 0, 1, 1]
