"""Attention that keeps documents apart, on its own and by torch's kernel for rows of several lengths."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from learner.training import attention
from learner.training.attention import (
    DOCUMENT_ATTENTION,
    FLASH_ATTENTION,
    attention_for,
    document_attention,
    document_starts,
)


def slow_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """One query at a time over the keys of its document up to itself."""
    heads, tokens, size = q.shape[1:]
    out = torch.zeros(1, tokens, heads, size, dtype=q.dtype)
    for h in range(heads):
        kv = h * k.shape[1] // heads
        for t in range(tokens):
            seen = [s for s in range(t + 1) if documents[s] == documents[t]]
            scores = torch.stack([q[0, h, t] @ k[0, kv, s] for s in seen]) * size**-0.5
            out[0, t, h] = scores.softmax(0) @ torch.stack([v[0, kv, s] for s in seen])
    return out


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sampled_from([(4, 4), (4, 2), (2, 1)]))
@settings(max_examples=20, deadline=None)
def test_attention_sees_only_its_own_document_and_the_past(lengths: list[int], heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v = (torch.randn(1, h, tokens, 8, dtype=torch.float64) for h in (heads[0], heads[1], heads[1]))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    got, _ = document_attention(torch.nn.Module(), q, k, v, None, position_ids=positions)
    torch.testing.assert_close(got, slow_attention(q, k, v, documents))
    assert len(document_starts(positions)) == len(lengths) + 1


def kernel_for_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    _: torch.Tensor,
    *lengths: int,
    **chosen: Any,
) -> torch.Tensor:
    """What torch's `varlen_attn` promises, one document at a time, with the whole matrix of scores."""
    assert lengths == (int(starts.diff().max()),) * 2
    assert chosen["enable_gqa"] == (q.shape[1] != k.shape[1])
    back, ahead = chosen["window_size"]
    assert ahead == 0
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    parts = []
    for start, end in itertools.pairwise(starts.tolist()):
        rows = torch.arange(end - start)
        distance = rows[:, None] - rows
        seen = (distance >= 0) & ((distance <= back) if back >= 0 else True)
        scores = torch.einsum("thd,shd->hts", q[start:end], k[start:end]) * chosen["scale"]
        parts.append(torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v[start:end]))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_rows_of_documents_go_to_the_kernel_as_it_wants_them(
    monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int], window: int | None
) -> None:
    torch.manual_seed(0)
    lengths = [5, 1, 9]
    q, k, v = (torch.randn(1, h, sum(lengths), 8, dtype=torch.float64) for h in (heads[0], heads[1], heads[1]))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    chosen: dict[str, Any] = {"position_ids": positions, "sliding_window": window, "scaling": 0.3}
    expected, _ = document_attention(torch.nn.Module(), q, k, v, None, **chosen)
    monkeypatch.setattr(attention, "_takes_rows", lambda query: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel_for_rows)
    got, _ = document_attention(torch.nn.Module(), q, k, v, None, **chosen)
    torch.testing.assert_close(got, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has a kernel for rows of several lengths on GPUs only")
@pytest.mark.parametrize("window", [None, 70])
def test_rows_of_documents_on_a_gpu_equal_one_document_at_a_time(window: int | None) -> None:
    torch.manual_seed(0)
    lengths = [300, 1, 129, 80]
    positions = torch.cat([torch.arange(n) for n in lengths])[None].cuda()
    inputs = [torch.randn(1, h, sum(lengths), 64, device="cuda", dtype=torch.bfloat16) for h in (8, 2, 2)]

    def outcome(dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (each.to(dtype).requires_grad_() for each in inputs)
        out, _ = document_attention(torch.nn.Module(), q, k, v, None, position_ids=positions, sliding_window=window)
        out.float().square().sum().backward()
        return [out.float(), *(each.grad.float() for each in (q, k, v) if each.grad is not None)]

    for got, expected in zip(outcome(torch.bfloat16), outcome(torch.float32), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("installed", [True, False])
def test_flash_attention_serves_where_it_is_installed_and_has_what_the_model_needs(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: installed)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    plain = AutoConfig.for_model("qwen3")
    assert attention_for(plain, gpu, torch.bfloat16) == (FLASH_ATTENTION if installed else DOCUMENT_ATTENTION)
    assert attention_for(plain, gpu, torch.float32) == DOCUMENT_ATTENTION
    assert attention_for(plain, cpu, torch.bfloat16) == DOCUMENT_ATTENTION
    assert attention_for(AutoConfig.for_model("gpt_oss"), gpu, torch.bfloat16) == DOCUMENT_ATTENTION
