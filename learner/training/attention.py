"""Attention that keeps packed documents apart, for devices and models that FlashAttention does not serve.

Hugging Face's `sdpa` attends across the documents of a packed sequence when Ulysses has dropped the mask. This one cuts
at every restart of the positions. It has no mask function, so no `[tokens, tokens]` mask is ever built; capped scores
and sinks are computed in blocks of queries, as are windows on CPU. On a GPU, in half precision, torch's own kernel for
rows of several lengths takes the whole row.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_flash_attn_2_available

DOCUMENT_ATTENTION = "longhaul_documents"
FLASH_ATTENTION = "flash_attention_2"
_QUERY_BLOCK = 512
_HALF = (torch.bfloat16, torch.float16)


def attention_for(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Name of the attention that trains a model exactly where it is: FlashAttention if it is installed and has what the
    model needs, else `document_attention`."""
    has_sinks = config.model_type == "gpt_oss"
    if device.type == "cuda" and dtype in _HALF and not has_sinks and is_flash_attn_2_available():
        return FLASH_ATTENTION
    return register_document_attention()


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
    sliding_window: int | None = None,  # keys that a query sees, itself included
    softcap: float | None = None,  # scores become softcap * tanh(scores / softcap)
    s_aux: torch.Tensor | None = None,  # [heads of the model], a sink's score, in the softmax but with no value
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document; returns `[1, tokens, heads, head]`."""
    assert query.shape[0] == 1, "documents are laid end to end in one row"
    assert attention_mask is None and not dropout
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    starts = document_starts(position_ids)
    if softcap is None and s_aux is None and _takes_rows(query):
        return _row_at_once(query, key, value, starts, scale, sliding_window), None
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:  # the fused kernel wants as many key heads as query heads
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    sinks = None if s_aux is None else _own_heads(s_aux, query.shape[1])
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    parts = [
        _causal(q, k, v, scale, sliding_window, softcap, sinks)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None  # some models view it as it is


def _takes_rows(query: torch.Tensor) -> bool:
    """Whether torch's kernel for rows of several lengths can take it."""
    return query.is_cuda and query.dtype in _HALF and query.shape[-1] <= 256 and not query.shape[-1] % 8


def _row_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: list[int], scale: float, window: int | None
) -> torch.Tensor:
    """Causal attention inside each document of the row, `[1, tokens, heads, head]`."""
    borders = torch.tensor(starts, dtype=torch.int32, device=query.device)
    longest = max(end - start for start, end in itertools.pairwise(starts))
    queries, keys, values = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))
    out = varlen_attn(
        queries,
        keys,
        values,
        borders,
        borders,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention inside one document, `[1, heads, tokens, head]`; in blocks of queries where the fused kernel cannot."""
    length = query.shape[2]
    if window is not None and window >= length:
        window = None
    if window is None and softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    places = torch.arange(length, device=query.device)
    blocks = []
    for start in range(0, length, _QUERY_BLOCK):
        end = min(start + _QUERY_BLOCK, length)
        first = 0 if window is None else max(0, start - window + 1)
        distance = places[start:end, None] - places[first:end]
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        keys, values = key[:, :, first:end], value[:, :, first:end]
        if softcap is None and sinks is None:
            blocks.append(
                F.scaled_dot_product_attention(query[:, :, start:end], keys, values, attn_mask=seen, scale=scale)
            )
            continue
        scores = query[:, :, start:end] @ keys.transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(1, -1, end - start, 1)], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        blocks.append(weights[..., : end - first] @ values)
    return torch.cat(blocks, 2)


def _own_heads(sinks: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The sinks of the heads that Ulysses gave to this rank: a block in the order of ranks."""
    if len(sinks) == num_heads:
        return sinks
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    rank = parallel_state_sp.get_sequence_parallel_rank()
    return sinks[rank * num_heads : (rank + 1) * num_heads]


def document_starts(position_ids: torch.Tensor) -> list[int]:
    """First position of every document in order, then the number of positions."""
    positions = position_ids.reshape(-1)
    restarts = (positions[1:] != positions[:-1] + 1).nonzero().reshape(-1) + 1
    return [0, *restarts.tolist(), positions.numel()]
