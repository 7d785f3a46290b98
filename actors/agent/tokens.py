"""The tokens of one episode that never looks back: append-only, sampled ids kept as sampled, never tokenized again."""

from __future__ import annotations

from typing import Any

import numpy as np

from actors.agent.chat import Chat, ChatTokenizer
from actors.agent.tree import ROOT, TokenTree
from actors.policy import Sampled


class History(TokenTree):
    """A tree of one path: it grows at the end only."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def open(self, messages: Chat, tools: list[dict[str, Any]] | None = None) -> None:
        """Start with the prompt."""
        assert len(self) == 0, "an episode has one prompt"
        self.add_given(ROOT, self.tokenizer.encode_prompt(messages, tools))

    def append_sampled(self, sampled: Sampled) -> tuple[int, int]:
        """Keep a model turn; the half-open range of its tokens. Raises `GeneratorError` if it is not well-formed."""
        return self.add_sampled(len(self) - 1, sampled)

    def encode_observation(self, role: str, content: str) -> np.ndarray:
        """Ids that `append_observation` would add after the model turn at the end."""
        assert len(self), "an observation answers a model turn"
        return self.tokenizer.encode_answer(role, content, int(self.token_ids[-1]))

    def append_observation(self, ids: np.ndarray) -> None:
        """Add what `encode_observation` gave."""
        self.add_given(len(self) - 1, ids)
