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
