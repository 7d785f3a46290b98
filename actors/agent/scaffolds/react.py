"""ReAct: free thought, then one fenced command a turn."""

from __future__ import annotations

from typing import Any

from actors.agent.chat import Chat
from actors.agent.commands import Command, extract_block, parse_command, spoken
from actors.agent.prompts import PromptStyle, react_chat
from actors.agent.tools import TOOLS


class React:
    """One ```command block a turn; every tool."""

    answer_role = "user"
    tools: list[dict[str, Any]] | None = None

    def __init__(self, style: PromptStyle, *, opens_thought: bool = False) -> None:
        self._style: PromptStyle = style
        self._opens_thought = opens_thought
        self._names = frozenset(TOOLS)

    def open(self, issue: str) -> Chat:
        return react_chat(issue, self._style)

    def parse(self, text: str) -> Command:
        return parse_command(extract_block(spoken(text, begun=self._opens_thought)), self._names)
