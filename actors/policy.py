"""Where an episode's tokens come from: one interface for generators, scripted policies and foreign endpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from msgspec import Struct

from protocol.messages import FinishReason, Sampling


class Request(Struct, frozen=True, kw_only=True):
    """What is to be continued, and how."""

    episode_id: str  # the turns of one episode go to one generator, for its prefix cache
    token_ids: np.ndarray  # int32 [prompt]
    sampling: Sampling
    stop_token_ids: list[int]
    cache_salt: str  # KV is shared only between prompts of the same salt
    timeout_s: float  # deadline of the whole continuation, failovers included
    pause: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    """Stands around waits that are not the model's time, so that no episode ends by them: for a slot, for an endpoint
    that is away."""


class Sampled(Struct, frozen=True, kw_only=True):
    """One continuation. The three arrays have one entry per sampled token."""

    token_ids: np.ndarray  # int32 [n], the stop token included
    logprobs: np.ndarray  # float32 [n]
    versions: np.ndarray  # int32 [n]
    finish_reason: FinishReason
    num_cached_tokens: int = 0
    experts: np.ndarray | None = None  # of the m tokens before the last one, see `Trajectory`


class Policy(Protocol):
    """Continues token sequences. Raises `GeneratorError` (kind full, lost, refused) and `DeadlineError`."""

    async def generate(self, request: Request) -> Sampled:
        """Sample a continuation of `request.token_ids`."""
        ...

    async def close(self) -> None:
        """Drop connections; open generations are cancelled."""
        ...
