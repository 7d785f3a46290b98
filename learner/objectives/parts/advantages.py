"""Rules that turn the rewards of one group into advantages: float64 [members] from the members' rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def group_normalised(rewards: Sequence[float]) -> np.ndarray:
    """`(r - mean) / std` over the group (GRPO, Shao et al., arXiv 2402.03300); zeros where all rewards are equal."""
    values = np.asarray(rewards, dtype=np.float64)
    centred = values - values.mean()
    std = float(values.std())
    if std <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(values)
    advantages: np.ndarray = centred / std
    return advantages


def episode_reward(rewards: Sequence[float]) -> np.ndarray:
    """The rewards themselves: the baseline is a value per token, not the group."""
    return np.asarray(rewards, dtype=np.float64)


def group_centred(rewards: Sequence[float]) -> np.ndarray:
    """`r - mean` over the group (Dr. GRPO, Liu et al., arXiv 2503.20783); zeros where all rewards are equal."""
    values = np.asarray(rewards, dtype=np.float64)
    if np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(values)
    centred: np.ndarray = values - values.mean()
    return centred


def leave_one_out(rewards: Sequence[float]) -> np.ndarray:
    """`r - mean of the others` (RLOO, Ahmadian et al., arXiv 2402.14740); zeros where all are equal or one is
    alone."""
    others = len(rewards) - 1
    return group_centred(rewards) * (len(rewards) / others if others else 1.0)
