"""Generalised advantage estimation over the sampled tokens of each sequence."""

from __future__ import annotations

import numpy as np


def gae(
    values: np.ndarray, rewards: np.ndarray, documents: np.ndarray, trained: np.ndarray, gamma: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns, float32 [positions]; 0 where `trained` is not set.

    The sampled tokens of a sequence are its steps; what the environment said lies between two of them. The episode's
    reward comes with the last one, after which the value is 0:

        delta_k = r_k + gamma V_{k+1} - V_k,  A_k = delta_k + gamma decay A_{k+1},  return_k = A_k + V_k

    (Schulman et al., arXiv 1506.02438, eq. 16; `decay` is its lambda.)

    Args:
        values: V before each token, float [positions].
        rewards: the episode's reward, at each of its tokens.
        documents: index of the sequence of each position, ascending.
        trained: whether the token at the position was sampled.
    """
    advantages, returns = np.zeros(len(values), np.float32), np.zeros(len(values), np.float32)
    after = -1  # sequence of the step behind
    next_value = next_advantage = 0.0
    for t in np.flatnonzero(trained)[::-1]:
        value, reward = float(values[t]), 0.0
        if documents[t] != after:
            after, next_value, next_advantage, reward = documents[t], 0.0, 0.0, float(rewards[t])
        next_advantage = reward + gamma * next_value - value + gamma * decay * next_advantage
        next_value = value
        advantages[t], returns[t] = next_advantage, next_advantage + value
    return advantages, returns
