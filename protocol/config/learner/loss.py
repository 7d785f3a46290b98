"""`[learner.loss]`: the objective."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from protocol.objectives import help_text, known_objective
from protocol.section import Amount, Section


class LossSettings(Section):
    """The objective."""

    name: Annotated[str, AfterValidator(known_objective), Field(description=help_text())] = "dapo"
    eps_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip: ratios under 1 - eps_low get no gradient where the advantage is negative."""
    eps_high: Annotated[float, Field(gt=0)] = 0.3
    """Upper clip (0.26 in stage 2)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the loss of large ratios with negative advantages (off: none)."""
    truncate_weight: Annotated[float, Field(gt=0)] = 2.0
    """`decoupled`: cap of the importance weight proximal / behaviour."""
    band_low: Annotated[float, Field(gt=0)] = 0.5
    """`icepop`: tokens whose learner / behaviour probability ratio is under this are masked."""
    band_high: Annotated[float, Field(gt=0)] = 5.0
    """`icepop`: the same, above."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the starting policy (0: no reference model is loaded)."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    format_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Step-wise shaping: the tokens of a turn whose action could not be read lose so much advantage (0: off)."""
    shuffle_rewards: bool = False
    """Self-check: deal each group's rewards out to its members at random. A policy that still gets better learns from
    something else than the reward."""
    length_threshold: Amount = 6
    """L_thr: turns from which the length penalty grows linearly to -1 at max_turns; at or above max_turns: off."""
