"""What a seat needs of an episode's history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from actors.policy import Sampled


class Prompt(Protocol):
    """Where a turn begins."""

    @property
    def token_ids(self) -> np.ndarray:
        """int32 [prompt]."""
        ...


class Conversation(Protocol):
    """The history of one episode."""

    def open(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> Any:
        """The `Prompt` of the turn that answers `messages`. Raises `ConfigError` where the template refuses them."""
        ...

    def record(self, prompt: Any, sampled: Sampled, message: dict[str, Any]) -> None:
        """Keep a turn that was sampled after `prompt`, and the message as which the agent will see it."""
        ...
