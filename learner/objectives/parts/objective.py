"""What an objective is, and what it sees of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protocol.config import LossSettings

if TYPE_CHECKING:  # `--help` and the docs' table read the registry without loading torch
    from torch import Tensor


@dataclass(frozen=True)
class TokenTensors:
    """What an objective sees. All are float tensors of the same shape, one entry a token."""

    logprobs: Tensor
    """Log-probabilities under the weights being trained; the only tensor through which the gradient flows."""
    behaviour: Tensor
    """Log-probabilities under the policy that sampled the token, as the generator reported them."""
    advantages: Tensor
    """Advantages (phase `rft`: 1)."""
    weights: Tensor
    """Weight of the token in the batch's mean; 0 where it is not trained on."""
    proximal: Tensor | None = None
    """Log-probabilities under the weights at the start of the step (default: `logprobs`, right for the first step)."""
    sequence_log_ratio: Tensor | None = None
    """Mean of `logprobs - old_policy` over the trained tokens of the token's sequence, if the objective wants it."""
    entropy: Tensor | None = None
    """Entropy of the policy at the token; needed when `entropy_coef` is not 0."""
    reference: Tensor | None = None
    """Log-probabilities under the reference policy; needed when `kl_coef` is not 0, and by `needs_reference`."""
    values: Tensor | None = None
    """The value head's estimates, through which gradients flow, too; where the objective has `targets`."""
    returns: Tensor | None = None
    """What the values should be."""


Targets = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, LossSettings], tuple[np.ndarray, np.ndarray]]
"""Values, rewards, sequences and masks of a micro-batch's positions to advantages and returns (`gae.py`)."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One row of the table."""

    loss: Callable[[TokenTensors, LossSettings], Tensor]
    """Loss of every token, the shape of its inputs; what it says of tokens of weight 0 is not looked at."""
    advantages: Callable[[Sequence[float]], np.ndarray]
    """Advantages of a group's members from their rewards, float64 [members]."""
    averaging: str
    """How tokens are averaged over a batch; see `averaging.py`."""
    reads: tuple[str, ...] = ()
    """Settings of `learner.loss` that the loss depends on."""
    corrects: bool = False
    """Whether the loss itself weighs or masks tokens by learner against sampler, so that `truncate_importance` has no
    place in it."""
    targets: Targets | None = None
    """Advantages from a learned value: the policy gets a value head, and `advantages` passes rewards on."""
    needs_reference: bool = False
    """Whether the loss is made of `TokenTensors.reference` instead of rewards."""
    sequence_ratio: bool = False
    """Whether the loss needs `TokenTensors.sequence_log_ratio`."""

    @property
    def learns_without_rewards(self) -> bool:
        """Whether a batch whose rewards are all 0 is worth a step."""
        return self.targets is not None or self.needs_reference
