"""A history for tests of the gateway alone: with what every turn was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.history.conversation import Conversation, Prompt, Turn
from actors.policy import Sampled

TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m['role'] }}
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}
{%- for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Noted(Struct, frozen=True):
    """What a turn was asked with."""

    token_ids: np.ndarray
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


class NotedHistory(Conversation):
    """A history that notes what every turn was asked with, besides."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        super().__init__(tokenizer)
        self.noted: list[tuple[Noted, Sampled, dict[str, Any]]] = []
        self._opened: dict[int, Noted] = {}

    def open(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> Prompt:
        """See `Conversation.open`."""
        prompt = super().open(messages, tools)
        shown = [dict(tool) for tool in tools] if tools else None
        self._opened[id(prompt)] = Noted(prompt.token_ids, [dict(message) for message in messages], shown)
        return prompt

    def record(self, prompt: Prompt, sampled: Sampled, message: Mapping[str, Any]) -> Turn:
        """See `Conversation.record`."""
        if id(prompt) in self._opened:  # else it was opened by another process
            self.noted.append((self._opened[id(prompt)], sampled, dict(message)))
        return super().record(prompt, sampled, message)
