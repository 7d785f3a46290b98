"""`[learner]`: DeepSpeed ranks and the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.config.learner.loss import LossSettings
from protocol.section import Amount, Count, Seconds, Section


class LearnerSettings(Section):
    """DeepSpeed ranks and the optimizer."""

    ranks: Amount = 0
    """Learner processes; 0: two on CPU with two cores or more, else one a GPU."""
    sequence_parallel: Amount = 0
    """Ulysses ranks that share one sequence; 0: as many as the ranks and the model's heads allow."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage."""
    threads: Count = 1
    """CPU threads of one rank."""
    pack_tokens: Amount = 0
    """Token budget of one packed micro-batch; 0: the model's max_context times two."""
    lr: Annotated[float, Field(ge=0)] = 5e-4
    """Peak learning rate (right for the tiny model; the presets of others, and the paper's RL, have 1e-6)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW betas (0.9, 0.999 in the paper, whose runs are hundreds of steps long)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW weight decay."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Clip on the norm of the whole gradient."""
    warmup_steps: Amount = 0
    """Linear warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logprob_chunk: Count = 1024
    """Tokens whose logits are in memory at once."""
    mlp_tile: Amount = 0
    """Tokens of one MLP tile (0: the whole sequence at once)."""
    self_test: bool = True
    """Refuse to train when log-probs of packed documents are not the model's own, or not those of the generators' first
    tokens. Turn it off only where the generators sample in another precision on purpose."""
    lora_rank: Amount = 0
    """Train low-rank adapters of this rank through peft (0: all weights)."""
    routing_replay: bool = False
    """Mixtures of experts: generators record which experts served each token, and the learner routes the same way (R3),
    so that rounding does not make it a different model. A byte for each expert of each token and layer."""
    router_aux_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss that balances experts (0: off; pretraining uses 0.001 to 0.01)."""
    step_timeout_s: Seconds = 1800
    """A step that takes longer is an error that names the rank."""
    loss: LossSettings = LossSettings()
    """The objective."""
