"""How sampled tokens become what an agent sees: reasoning, text, tool calls. The tokens themselves stay as sampled."""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.gateway.asks import object_of


class ReadCall(Struct, frozen=True, kw_only=True):
    """One tool call that the model wrote. `arguments` is JSON."""

    name: str
    arguments: str


class Reading(Struct, frozen=True, kw_only=True):
    """One turn, taken apart."""

    content: str
    reasoning: str = ""
    calls: list[ReadCall] = []
    num_reasoning_tokens: int = 0


class Reader(Protocol):
    """Takes turns apart. Raises `GeneratorError` or `DeadlineError` where it cannot be asked."""

    async def read(self, prompt_ids: np.ndarray, token_ids: np.ndarray, tools: list[dict[str, Any]]) -> Reading:
        """One sampled turn (int32 [n]) after its prompt, under the tools that it was shown; without tools no call is
        looked for."""
        ...


_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"\A\s*(?:<think>)?(.*?)</think>", re.DOTALL)


class HermesReader:
    """`<tool_call>{"name": ..., "arguments": ...}</tool_call>` and `<think>`, read here: the fake of this seam.

    What a foreign endpoint or a script writes is read by it; a model of ours is read where vLLM is loaded.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    async def read(self, prompt_ids: np.ndarray, token_ids: np.ndarray, tools: list[dict[str, Any]]) -> Reading:
        """See `Reader.read`."""
        text = self._tokenizer.decode(token_ids)
        thought = _THOUGHT.match(text)
        reasoning, content = (thought[1].strip(), text[thought.end() :]) if thought else ("", text)
        calls: list[ReadCall] = []
        if tools:
            calls = [call for found in _CALL.finditer(content) if (call := _call(found[1])) is not None]
        if calls:
            content = content[: content.index("<tool_call>")]
        return Reading(
            content=content.strip() if calls or thought else content,
            reasoning=reasoning,
            calls=calls,
            num_reasoning_tokens=len(self._tokenizer.encode(thought[0])) if thought else 0,
        )


def _call(text: str) -> ReadCall | None:
    call = object_of(text)
    if call is None or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return ReadCall(
        name=call["name"],
        arguments=arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode(),
    )
