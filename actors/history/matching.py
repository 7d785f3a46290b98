"""Which messages are the same: what a client may do to a message without changing it. Pure.

Clients drop the reasoning of earlier turns, leave out null fields or put them in another order, write the arguments of
tool calls anew and change the ids of calls. None of that makes another message. What was given to the model (system
texts, users' messages, results of tools) is compared letter by letter: a changed letter is another past.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

Message = dict[str, Any]
"""As a chat template takes it: role, content (text), and where they apply tool_calls, reasoning_content, tool_call_id,
name."""

_ENCODER = msgspec.json.Encoder(order="deterministic")
MOST_DEPTH = 100
"""Levels of arguments that are read as an object; deeper ones stay a text, which no code of ours walks through."""
_THOUGHT_ENDS = "</think>"


def read(message: Mapping[str, Any]) -> Message:
    """The message as it is rendered: no null fields, content a text, arguments of tool calls as objects."""
    kept = {name: value for name, value in message.items() if value is not None}
    kept["content"] = kept.get("content", "")
    if not kept.get("reasoning_content"):
        kept.pop("reasoning_content", None)
    if calls := kept.pop("tool_calls", None):
        kept["tool_calls"] = [_read_call(call) for call in calls]
    return kept


def answer_key(message: Message) -> bytes:
    """Equal for what the model said, and for whatever clients make of it."""
    said = message["content"].rpartition(_THOUGHT_ENDS)[2].strip()
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]
    return digest("said", said, calls)


def given_key(message: Message) -> bytes:
    """Equal for equal messages to the model."""
    return digest("given", message["role"], message["content"], message.get("name", ""))


def digest(*parts: object) -> bytes:
    """A short name for JSON values."""
    try:
        spelled = _ENCODER.encode(parts)
    except (OverflowError, UnicodeEncodeError, TypeError):  # integers of more than 64 bits, halves of characters
        spelled = json.dumps(parts, ensure_ascii=True, sort_keys=True, default=bytes.hex).encode()
    return hashlib.blake2b(spelled, digest_size=16).digest()


def renamed(message: Message, names: Mapping[str, str]) -> Message:
    """The result of a tool call with the id under which the call was recorded."""
    call = names.get(str(message.get("tool_call_id")))
    return {**message, "tool_call_id": call} if call else message


def call_names(sent: Message, recorded: Message) -> Iterator[tuple[str, str]]:
    """The ids of tool calls as the client has them, with those of the same calls as they were recorded."""
    pairs = zip(sent.get("tool_calls", ()), recorded.get("tool_calls", ()), strict=True)
    return ((a["id"], b["id"]) for a, b in pairs if "id" in a and "id" in b)


def _read_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _object(arguments)
    named = {"id": call["id"]} if call.get("id") is not None else {}
    return {**named, "type": "function", "function": {"name": function.get("name", ""), "arguments": arguments}}


def _object(text: str) -> Any:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) and not too_deep(found) else text


def too_deep(value: object, most: int = MOST_DEPTH) -> bool:
    """Whether a JSON value is nested more than `most` levels deep."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def spelled(messages: Sequence[Message]) -> list[Message]:
    """The messages with arguments of tool calls as JSON texts, for templates that add strings."""
    return [_spelled(message) if "tool_calls" in message else message for message in messages]


def _spelled(message: Message) -> Message:
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return {**message, "tool_calls": calls}
