"""Fast batched sampling from the tiny model in plain PyTorch: every slot keeps its own key-value cache over its turns.

For looking at policies without an engine: made for a model of under a million parameters and a few hundred sequences.
Logits are those of `transformers` (a test holds them equal); real runs sample from vLLM.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb


class Sampler:
    """Continues up to `num_slots` growing sequences at the same time. Shapes: B slots, T chunk, C context.

    Args:
        max_context: most tokens of one sequence.
        temperature: softmax temperature; log-probs are taken under it. 0 is greedy.
    """

    def __init__(
        self, model: Qwen2ForCausalLM, num_slots: int, max_context: int, *, temperature: float = 1.0, seed: int = 0
    ) -> None:
        self._model = model
        self._temperature = temperature
        self._random = torch.Generator().manual_seed(seed)
        config = model.config
        assert config.num_key_value_heads is not None
        self._head_dim = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, num_slots, config.num_key_value_heads, max_context + 1, self._head_dim)
        # the last place takes what is written for padding; nothing reads it
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)
        self._lengths = torch.zeros(num_slots, dtype=torch.long)

    def reset(self, slot: int) -> None:
        """Forget a slot's sequence."""
        self._lengths[slot] = 0

    def length(self, slot: int) -> int:
        """How many tokens of a slot's sequence have been run; a prompt begins with the one after them."""
        return int(self._lengths[slot])

    @torch.inference_mode()
    def generate(
        self, prompts: Mapping[int, np.ndarray], max_tokens: Mapping[int, int], stop_token_ids: list[int]
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Append each slot's new ids to its sequence, sample until a stop token or its `max_tokens`.

        Returns the sampled ids (int32) and their log-probs (float32) by slot.

        A slot's last sampled token is not in its cache yet: it opens the next prompt, as in a whole history.
        """
        slots = torch.tensor(sorted(prompts))
        ids: dict[int, list[int]] = {slot: [] for slot in prompts}
        logprobs: dict[int, list[float]] = {slot: [] for slot in prompts}
        stops = torch.tensor(stop_token_ids)
        logits = self._extend(slots, [torch.from_numpy(prompts[int(slot)].astype(np.int64)) for slot in slots])
        most = torch.tensor([max_tokens[int(slot)] for slot in slots])
        for step in itertools.count(1):
            tokens, chosen = self._draw(logits)
            for slot, token, logprob in zip(slots.tolist(), tokens.tolist(), chosen.tolist(), strict=True):
                ids[slot].append(token)
                logprobs[slot].append(logprob)
            going = ~torch.isin(tokens, stops) & (step < most)
            slots, tokens, most = slots[going], tokens[going], most[going]
            if not len(slots):
                break
            logits = self._extend(slots, list(tokens[:, None]))
        return {slot: (np.array(ids[slot], np.int32), np.array(logprobs[slot], np.float32)) for slot in prompts}

    def _draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their log-probs [B] from logits [B, vocabulary]."""
        logprobs = torch.log_softmax(logits / (self._temperature or 1.0), -1)
        if self._temperature:
            tokens = torch.multinomial(logprobs.exp(), 1, generator=self._random)
        else:
            tokens = logprobs.argmax(-1, keepdim=True)
        return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]

    def _extend(self, slots: Tensor, chunks: list[Tensor]) -> Tensor:
        """Run new tokens through the model; logits [B, vocabulary] after the last of each chunk."""
        sizes = torch.tensor([len(chunk) for chunk in chunks])
        ids = torch.nn.utils.rnn.pad_sequence(chunks, batch_first=True)  # [B, T]
        starts = self._lengths[slots]
        positions = starts[:, None] + torch.arange(ids.shape[1])  # [B, T]
        room = self._keys.shape[3] - 1
        if int((starts + sizes).max()) > room:
            raise ValueError(f"a sequence of {int((starts + sizes).max())} tokens does not fit into {room}")
        positions = positions.clamp(max=room)
        body = self._model.model
        hidden = body.embed_tokens(ids)
        rotary = body.rotary_emb(hidden, positions)
        span = int((starts + sizes).max())
        mask = (torch.arange(span) <= positions[:, :, None])[:, None]  # [B, 1, T, span]
        layer: Any  # a module list tells nothing of what is in it
        for index, layer in enumerate(body.layers):
            hidden = hidden + self._attend(
                index, layer.self_attn, layer.input_layernorm(hidden), rotary, slots, positions, mask
            )
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        self._lengths[slots] = starts + sizes
        last = hidden[torch.arange(len(slots)), sizes - 1]
        logits: Tensor = self._model.lm_head(body.norm(last))
        return logits

    def _attend(
        self,
        index: int,
        attention: Any,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        slots: Tensor,
        positions: Tensor,
        mask: Tensor,
    ) -> Tensor:
        split = (*hidden.shape[:2], -1, self._head_dim)
        query = attention.q_proj(hidden).view(split).transpose(1, 2)
        key = attention.k_proj(hidden).view(split).transpose(1, 2)
        value = attention.v_proj(hidden).view(split).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        rows = slots[:, None]
        # advanced indices around a slice come first: [B, T, heads, head_dim]
        self._keys[index, rows, :, positions] = key.transpose(1, 2)
        self._values[index, rows, :, positions] = value.transpose(1, 2)
        span = mask.shape[-1]
        keys, values = self._keys[index, slots, :, :span], self._values[index, slots, :, :span]
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
        attended: Tensor = attention.o_proj(out.transpose(1, 2).flatten(2))
        return attended
