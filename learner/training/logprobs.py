"""A causal language model as a function from tokens to log-probs, never holding `[tokens, vocabulary]` logits whole.

The last projection, the log-softmax and the entropy run in chunks of positions, each recomputed in the backward pass,
so their memory is `chunk x vocabulary` whatever the length. The projection is the model's own module, so tied
embeddings, ZeRO-3's gathering and adapters work as everywhere else in the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class TokenLogprobs(nn.Module):
    """Log-probs and entropies of given targets under a causal language model.

    Args:
        causal_lm: a Hugging Face model with a decoder and output embeddings.
        chunk: positions whose logits are in memory at once.
        temperature: logits are divided by it, as they were when the targets were sampled.
        entropy_gradient: let gradients flow through the entropies, too; that takes two more copies of a chunk's logits.
        with_values: put a linear head on the last hidden state that estimates what an episode will be worth; it starts
            at 0 and is no part of the causal language model.
    """

    def __init__(
        self,
        causal_lm: nn.Module,
        chunk: int,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        with_values: bool = False,
    ) -> None:
        super().__init__()
        self.causal_lm: Any = causal_lm  # what is asked of it is Hugging Face's, not torch's
        self.chunk = chunk
        self.temperature = temperature
        self.entropy_gradient = entropy_gradient
        self.value_head = value_head(causal_lm) if with_values else None
        self.scale, self.softcap = _logit_scale(causal_lm.config), _softcap(causal_lm.config)

    def forward(self, token_ids: Tensor, positions: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Log-prob of every target and entropy of its distribution, and the value before it if there is a head,
        float32 [1, tokens]; inputs int64 [1, tokens]."""
        hidden = self.causal_lm.get_decoder()(
            input_ids=token_ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        chunks = [
            checkpoint(self._of_chunk, some_hidden, some_targets, use_reentrant=False)
            for some_hidden, some_targets in zip(hidden.split(self.chunk, 1), targets.split(self.chunk, 1), strict=True)
        ]
        logprobs, entropies = zip(*chunks, strict=True)
        if self.value_head is None:
            return torch.cat(logprobs, 1), torch.cat(entropies, 1)
        return torch.cat(logprobs, 1), torch.cat(entropies, 1), self.value_head(hidden)[..., 0].float()

    def _of_chunk(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.causal_lm.get_output_embeddings()(hidden).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        logprobs = logits.log_softmax(-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.entropy_gradient):
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, targets[..., None])[..., 0], entropy


def value_head(causal_lm: Any) -> nn.Linear:
    """A head for this model, all zero: values start at 0, and no seed has to be shared."""
    some = next(causal_lm.parameters())
    head = nn.Linear(causal_lm.config.hidden_size, 1, dtype=some.dtype, device=some.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _logit_scale(config: Any) -> float:
    """What a model multiplies its projection with, outside of the projection: Granite divides, Cohere multiplies."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def _softcap(config: Any) -> float | None:
    """Bound that Gemma 2 puts on its logits: `cap * tanh(logits / cap)`."""
    cap = getattr(config, "final_logit_softcapping", None)
    return float(cap) if cap else None
