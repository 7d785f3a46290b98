"""`[learner.loss]`: the objective."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from protocol.objectives import help_text, known_objective
from protocol.section import Address, Amount, Seconds, Section, Share


class LossSettings(Section):
    """The objective."""

    name: Annotated[str, AfterValidator(known_objective), Field(description=help_text())] = "dapo"
    averaging: Literal["token", "sequence", "constant"] | None = None
    """Over a batch, every sampled token weighs the same (token), every episode (sequence), or every token as much as in
    any other batch, 1 / (max_context * episodes) (constant). Default: as the objective's authors do."""
    truncate_importance: Annotated[float, Field(gt=0)] | None = None
    """Truncated importance sampling, for any objective that does not weigh or mask by learner / sampler itself: its
    ratios are taken against the learner's weights before the step, its loss is times min(learner / sampler, this)."""
    eps_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Lower clip: ratios under 1 - eps_low get no gradient where the advantage is negative (1: no bound)."""
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
    tau_positive: Annotated[float, Field(gt=0)] = 1.0
    """`sapo`: how fast the gate closes around a ratio of 1 where the advantage is positive."""
    tau_negative: Annotated[float, Field(gt=0)] = 1.05
    """`sapo`: the same, where it is negative."""
    max_divergence: Annotated[float, Field(gt=0)] = 0.15
    """`dppo_tv`, `dppo_kl`: divergence of a token beyond which it is masked (its authors: TV 0.15, KL 0.05)."""
    value_coef: Annotated[float, Field(ge=0)] = 0.1
    """`ppo`: weight of the value head's squared error."""
    gamma: Share = 1.0
    """`ppo`: discount from one sampled token to the next."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 1.0
    """`ppo`: how far advantages look past the value head; 1: to the episode's reward."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the reference policy, a frozen model of which every rank keeps a copy, or at stage 3 a shard
    (0: none is loaded, but for `distill`)."""
    reference: Path | None = None
    """Model directory of the reference policy, with the run's own tokenizer: what the KL is taken to, and the teacher
    of `distill` (default: the starting policy)."""
    reference_endpoint: Address | None = None
    """Instead: address (`http://host:port/v1`) of a vLLM server, which scores the very token ids of every batch
    before it is trained on. Its tokenizer must be the run's, and `episode.temperature` 1."""
    reference_name: str | None = None
    """Name of the reference model at that endpoint."""
    reference_api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable of the learner that holds the endpoint's key, if it wants one."""
    reference_timeout_s: Seconds = 1800
    """The run ends, and says why, when the endpoint gave no scores of an episode for so long; until then the batch
    waits."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators of that KL; k1 acts as it does in a reward (learner/objectives/parts/kl.py says why)."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    format_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Step-wise shaping: the tokens of a turn whose action could not be read lose so much advantage (0: off)."""
    shuffle_rewards: bool = False
    """Self-check: deal each group's rewards out to its members at random. A policy that still gets better learns from
    something else than the reward."""
    length_threshold: Amount = 6
    """L_thr: turns from which the length penalty grows linearly to -1 at max_turns; at or above max_turns: off."""

    @model_validator(mode="after")
    def _check_together(self) -> LossSettings:
        if (self.reference_endpoint is None) != (self.reference_name is None):
            raise ValueError("reference_endpoint and reference_name, the model's name at that endpoint, go together")
        if self.reference_endpoint and self.reference:
            raise ValueError("reference is a model at the learner, reference_endpoint one elsewhere: give one of them")
        return self
