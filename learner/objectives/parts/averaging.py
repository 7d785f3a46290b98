"""How the tokens of a batch are averaged: the loss of a batch is `sum(weight * loss) / normaliser`.

The sum goes over all tokens of all ranks and micro-batches, and no sum crosses ranks inside autograd.

- `token`: every trained token weighs 1, the token mean of DAPO (Yu et al., arXiv 2503.14476, eq. 8);
- `sequence`: a token weighs 1 / (trained tokens of its episode), the sequence mean of GRPO and GSPO;
- `constant`: a token weighs 1 / max_context and the normaliser is the number of episodes, so that neither an episode's
  length nor the batch's changes what a token counts (Dr. GRPO, Liu et al., arXiv 2503.20783).

The normaliser of the first two is the sum of the weights. A branching episode counts once: its samples hold shares of
it that add up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def token_weight(averaging: str, num_trained: int, max_context: int) -> float:
    """Weight of every trained token of an episode that has `num_trained` of them."""
    return {"token": 1.0, "sequence": 1 / max(num_trained, 1), "constant": 1 / max_context}[averaging]


def normaliser(averaging: str, weights: Sequence[np.ndarray], shares: Sequence[float]) -> float:
    """What the weighted sum of the losses is divided by, of all samples' weights and shares of an episode."""
    if averaging == "constant":
        return float(sum(share for some, share in zip(weights, shares, strict=True) if some.any()))
    return float(sum(some.sum(dtype=np.float64) for some in weights))
