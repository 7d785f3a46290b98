"""What a scaffold is."""

from __future__ import annotations

from typing import Any, Protocol

from actors.agent.chat import Chat
from actors.agent.commands import Command


class Scaffold(Protocol):
    """How an issue becomes a conversation and a model turn a command. Stateless: one for all episodes."""

    answer_role: str
    """Role of the message that carries a command's output."""
    tools: list[dict[str, Any]] | None
    """Tool schemas for the chat template, if it shows them."""

    def open(self, issue: str) -> Chat:
        """The conversation before the first model turn."""
        ...

    def parse(self, text: str) -> Command:
        """The one command of a turn. Raises `FormatError` with the answer for the model."""
        ...
