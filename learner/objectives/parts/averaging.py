"""How the tokens of a batch are averaged: the loss of a batch is `sum(weight * loss) / sum(weight)`.

The sum goes over all tokens of all ranks and micro-batches, and no sum crosses ranks inside autograd.

- `token`: every trained token weighs 1, the token mean of DAPO (Yu et al., arXiv 2503.14476, eq. 8);
- `sequence`: a token weighs 1 / (trained tokens of its sequence), the sequence mean of GRPO and GSPO.
"""

from __future__ import annotations


def token_weight(averaging: str, num_trained: int) -> float:
    """Weight of every trained token of a sequence that has `num_trained` of them."""
    return 1 / max(num_trained, 1) if averaging == "sequence" else 1.0
