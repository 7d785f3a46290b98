"""Attention that keeps packed documents apart, for devices without flash attention.

Hugging Face's `sdpa` attends across the documents of a packed sequence when Ulysses has dropped the mask. This one cuts
at every restart of the positions. It has no mask function, so no `[tokens, tokens]` mask is ever built.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

DOCUMENT_ATTENTION = "longhaul_documents"


def register_document_attention() -> str:
    """Make the attention known to transformers under the name that is returned."""
    ALL_ATTENTION_FUNCTIONS[DOCUMENT_ATTENTION] = document_attention  # replaces an earlier policy's Ulysses wrapper
    return DOCUMENT_ATTENTION


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, head]
    key: torch.Tensor,  # [1, kv heads, tokens, head]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor,  # [1, tokens]
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document; returns `[1, tokens, heads, head]`."""
    assert query.shape[0] == 1, "documents are laid end to end in one row"
    assert attention_mask is None and not dropout and sliding_window is None
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:  # the fused kernel wants as many key heads as query heads
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    starts = document_starts(position_ids)
    parts = [
        F.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], is_causal=True, scale=scaling
        )
        for start, end in itertools.pairwise(starts)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def document_starts(position_ids: torch.Tensor) -> list[int]:
    """First position of every document in order, then the number of positions."""
    positions = position_ids.reshape(-1)
    restarts = (positions[1:] != positions[:-1] + 1).nonzero().reshape(-1) + 1
    return [0, *restarts.tolist(), positions.numel()]
