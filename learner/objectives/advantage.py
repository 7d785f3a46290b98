"""Rewards to advantages: pure functions of numbers, no tensors.

The reward of an episode is the paper's (arXiv 2508.03501): 1 if the hidden tests pass, else 0, plus a penalty growing
linearly from 0 at `threshold` turns to -1 at `max_turns`. The objective's rule turns a group's rewards into advantages,
the same for every token of an episode. A step-wise reward adds a term of its own to the tokens of single turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from learner.objectives.registry import loss_settings, objective_named
from protocol.config import Settings
from protocol.messages import Trajectory

StepReward = Callable[[Trajectory], np.ndarray]
"""Step-wise shaping: a trajectory to one reward a turn, float [turns]."""


def length_penalty(num_turns: int, max_turns: int, threshold: int) -> float:
    """`(threshold - turns) / (max_turns - threshold)` from `threshold` turns on, else 0; off from `max_turns` on."""
    if threshold >= max_turns or num_turns < threshold:
        return 0.0
    return (threshold - min(num_turns, max_turns)) / (max_turns - threshold)


def format_error_reward(penalty: float) -> StepReward:
    """Step-wise shaping: `-penalty` for every turn whose action could not be read, 0 for the others."""

    def reward(trajectory: Trajectory) -> np.ndarray:
        return np.array([-penalty if turn.format_error else 0.0 for turn in trajectory.turns])

    return reward


def token_advantages(
    trajectories: Sequence[Trajectory], settings: Settings, step_rewards: Sequence[StepReward] = ()
) -> list[np.ndarray]:
    """Advantage of every token, float32 [tokens] for each trajectory in order.

    Groups are recognised by `group_id`. A step-wise reward is centred on its mean over the group's turns, so that
    shaping says which turns were better and never moves the group as a whole, and is added to the turn's tokens.
    """
    totals: list[np.ndarray] = [np.zeros(len(t.token_ids), np.float32) for t in trajectories]
    rule = objective_named(loss_settings(settings).name).advantages
    groups: dict[str, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        groups.setdefault(trajectory.group_id, []).append(index)
    for members in groups.values():
        rewards = [_reward(trajectories[i], settings) for i in members]
        if settings.learner.loss.shuffle_rewards:
            Random(f"{settings.seed} {trajectories[members[0]].group_id}").shuffle(rewards)
        for index, advantage in zip(members, rule(rewards), strict=True):
            totals[index] += np.float32(advantage)
        for step_reward in step_rewards:
            _add_step_rewards([trajectories[i] for i in members], [totals[i] for i in members], step_reward)
    return totals


def step_rewards_of(settings: Settings) -> list[StepReward]:
    """The step-wise rewards that the settings turn on."""
    penalty = settings.learner.loss.format_penalty
    return [format_error_reward(penalty)] if penalty else []


def _reward(trajectory: Trajectory, settings: Settings) -> float:
    penalty = length_penalty(len(trajectory.turns), settings.episode.max_turns, settings.learner.loss.length_threshold)
    return trajectory.reward + penalty


def _add_step_rewards(group: list[Trajectory], totals: list[np.ndarray], step_reward: StepReward) -> None:
    rewards = [step_reward(trajectory) for trajectory in group]
    mean = np.concatenate(rewards).mean() if any(r.size for r in rewards) else 0.0
    for trajectory, total, values in zip(group, totals, rewards, strict=True):
        for turn, value in zip(trajectory.turns, values, strict=True):
            total[turn.start : turn.end] += np.float32(value - mean)
