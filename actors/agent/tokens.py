"""The tokens of one episode: append-only, sampled ids kept as sampled, never tokenized again."""

from __future__ import annotations

from typing import Any

import numpy as np

from actors.agent.chat import Chat, ChatTokenizer
from actors.policy import Sampled
from protocol.errors import GeneratorError
from protocol.messages import NOT_SAMPLED


class History:
    """Ids, mask, log-probs and versions of an episode, one entry per token; grows at the end only."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.token_ids = np.empty(0, np.int32)
        self.loss_mask = np.empty(0, np.uint8)
        self.logprobs = np.empty(0, np.float32)
        self.versions = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self.token_ids)

    def open(self, messages: Chat, tools: list[dict[str, Any]] | None = None) -> None:
        """Start with the prompt."""
        assert len(self) == 0, "an episode has one prompt"
        self._append_given(self.tokenizer.encode_prompt(messages, tools))

    def append_sampled(self, sampled: Sampled) -> tuple[int, int]:
        """Keep a model turn; the half-open range of its tokens. Raises `GeneratorError` if it is not well-formed."""
        n = len(sampled.token_ids)
        if not 0 < n == len(sampled.logprobs) == len(sampled.versions):
            raise GeneratorError(
                f"expected as many log-probs and versions as sampled tokens and at least one, got {n} tokens, "
                f"{len(sampled.logprobs)} log-probs, {len(sampled.versions)} versions",
                kind="malformed",
            )
        start = len(self)
        self._append(sampled.token_ids, np.ones(n, np.uint8), sampled.logprobs, sampled.versions)
        return start, len(self)

    def encode_observation(self, role: str, content: str) -> np.ndarray:
        """Ids that `append_observation` would add after the model turn at the end."""
        assert len(self), "an observation answers a model turn"
        return self.tokenizer.encode_answer(role, content, int(self.token_ids[-1]))

    def append_observation(self, ids: np.ndarray) -> None:
        """Add what `encode_observation` gave."""
        self._append_given(ids)

    def _append_given(self, ids: np.ndarray) -> None:
        n = len(ids)
        self._append(ids, np.zeros(n, np.uint8), np.zeros(n, np.float32), np.full(n, NOT_SAMPLED, np.int32))

    def _append(self, ids: np.ndarray, mask: np.ndarray, logprobs: np.ndarray, versions: np.ndarray) -> None:
        self.token_ids = np.concatenate([self.token_ids, ids], dtype=np.int32, casting="same_kind")
        self.loss_mask = np.concatenate([self.loss_mask, mask])
        self.logprobs = np.concatenate([self.logprobs, logprobs], dtype=np.float32, casting="same_kind")
        self.versions = np.concatenate([self.versions, versions], dtype=np.int32, casting="same_kind")
