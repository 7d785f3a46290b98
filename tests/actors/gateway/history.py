"""A history for tests of the gateway alone: every conversation is rendered anew, every turn is noted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
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


class Rendered(Struct, frozen=True):
    """A prompt."""

    token_ids: np.ndarray
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


class RenderedHistory:
    """A `Conversation` that reuses nothing."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self.turns: list[tuple[Rendered, Sampled, dict[str, Any]]] = []

    def open(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> Rendered:
        """See `Conversation.open`."""
        shown = list(tools) if tools else None
        text = self._tokenizer.render(list(messages), tools=shown)
        return Rendered(self._tokenizer.encode(text), list(messages), shown)

    def record(self, prompt: Rendered, sampled: Sampled, message: dict[str, Any]) -> None:
        """See `Conversation.record`."""
        self.turns.append((prompt, sampled, message))
