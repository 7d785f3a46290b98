"""Conversations as a chat template writes them, and the ids of that.

What messages say is data: where it spells a control token it is encoded as its characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.agent.chat import ChatTokenizer, without_system
from actors.history.marks import ESCAPE, Found, Marked, cleaned
from actors.history.matching import Message, spelled
from protocol.errors import ConfigError

_THOUGHT_TAGS = ("<think>", "</think>")
_CALL = {"id": "call00001", "type": "function", "function": {"name": "shell", "arguments": {"command": "SaidHere"}}}
_PROBE: list[Message] = [
    {"role": "user", "content": "-"},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "ok", "tool_call_id": "call00001"},
]


class Rendering:
    """What a tokenizer's template makes of conversations.

    Templates disagree on how a message that only calls tools says that it has no content (an empty text or none at
    all), and on whether the arguments of a call are an object or its JSON text. Which of these it takes is found here.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        spellings = sorted(map(re.escape, tokenizer.controls), key=len, reverse=True)
        kept = [s for s in spellings if s not in map(re.escape, _THOUGHT_TAGS)]
        self._control = re.compile("|".join(spellings) or r"(?!)")
        self._control_but_thoughts = re.compile("|".join(kept) or r"(?!)")
        escaped = [re.escape(_escape(control)) for control in sorted(tokenizer.controls, key=len, reverse=True)]
        self._escaped = re.compile("|".join(escaped) or r"(?!)")
        self._spells_arguments, self._empty = self._probe()

    def write(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, generate: bool = True) -> str:
        """The template's text. Raises `ConfigError` if it refuses the conversation."""
        return self._write(messages, tools, generate, self._spells_arguments, self._empty)

    def find(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, text: str, marked: Marked) -> Found:
        """The marks of `marked` in `text`, the template's text of `messages`: none where marks would change it."""
        try:
            found = Found(marked, self.write(marked.messages, tools))
        except ConfigError:  # a template that looks into what is said
            return Found(marked, text)
        return found if found.text == text else Found(marked, text)

    def as_data(self, message: Message) -> Message:
        """The message with every control token that it spells escaped."""
        control = self._control_but_thoughts if message["role"] == "assistant" else self._control
        escaped: Message = _each_text(message, lambda text: _escape_all(control, text))
        return escaped

    @staticmethod
    def as_said(message: Message) -> Message:
        """The message as it was before `as_data`."""
        said: Message = _each_text(message, lambda text: text.replace(ESCAPE, ""))
        return said

    def tools_as_data(self, tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
        """The same of tools' schemas."""
        if not tools:
            return None
        escaped: list[dict[str, Any]] = _each_text(tools, lambda text: _escape_all(self._control, text))
        return escaped

    def encode(self, text: str) -> np.ndarray:
        """Ids (int32) of what a template wrote."""
        parts, end = [], 0
        for match in self._escaped.finditer(text):
            parts.append(self._tokenizer.encode_rendered(text[end : match.start()].replace(ESCAPE, "")))
            parts.append(self._tokenizer.encode(match[0].replace(ESCAPE, "")))
            end = match.end()
        parts.append(self._tokenizer.encode_rendered(text[end:].replace(ESCAPE, "")))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def offsets(self, text: str) -> np.ndarray:
        """Where in `text` each of the tokens of `encode` begins, int64 [tokens]."""
        parts, end = [], 0
        for match in self._escaped.finditer(text):
            parts.append(end + self._tokenizer.offsets_rendered(text[end : match.start()]))
            num = len(self._tokenizer.encode(match[0].replace(ESCAPE, "")))
            parts.append(np.full(num, match.start(), np.int64))
            end = match.end()
        parts.append(end + self._tokenizer.offsets_rendered(text[end:]))
        return np.concatenate(parts)

    def opening(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None) -> str:
        """What the template writes for the assistant to go on from, after `messages`; empty: nothing, or it is not to
        be told from the rest."""
        closed = self.write(messages, tools, generate=False)
        opened = self.write(messages, tools)
        return opened.removeprefix(closed) if opened.startswith(closed) else ""

    def close_of(self, last_sampled: int | None, text: str, start: int, end: int) -> int | None:
        """Where the template's close of an assistant turn begins in `text[start:end]`, None if it writes none.

        `last_sampled` is the id that the turn ended with, None if it was cut: then any close is one.
        """
        stops = self._tokenizer.stop_token_ids if last_sampled is None else [last_sampled]
        spellings = [self._tokenizer.decode([stop], keep_special=True) for stop in stops]
        known = [s for s in spellings if s in self._tokenizer.controls]
        places = [place for s in known if (place := text.find(s, start, end)) >= 0]
        return min(places, default=None)

    def ends_turn(self, last_sampled: int) -> bool:
        """Whether a turn with this id at its end was not cut."""
        return last_sampled in self._tokenizer.stop_token_ids

    def _write(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None,
        generate: bool,
        spells_arguments: bool,
        empty: str | None,
    ) -> str:
        chat = spelled(messages) if spells_arguments else list(messages)
        chat = [{**m, "content": empty} if "tool_calls" in m and not m["content"] else m for m in chat]
        chat = [{**m, "thinking": m["reasoning_content"]} if "reasoning_content" in m else m for m in chat]  # harmony
        if not self._tokenizer.takes_system and len(chat) > 1:
            chat = without_system(chat)
        return self._tokenizer.render(chat, tools=tools, generate=generate)

    def _probe(self) -> tuple[bool, str | None]:
        for spells_arguments in (False, True):
            for empty in ("", None):
                try:
                    text = self._write(_PROBE, None, True, spells_arguments, empty)
                except ConfigError:
                    continue
                if "shell" in text and "SaidHere" in text and "None" not in text:
                    return spells_arguments, empty
        return False, ""  # it shows no calls: then each of them is one that it leaves out


def _escape(control: str) -> str:
    return control[0] + ESCAPE + control[1:]


def _escape_all(controls: re.Pattern[str], text: str) -> str:
    return controls.sub(lambda match: _escape(match[0]), cleaned(text))


def _each_text(value: Any, change: Any) -> Any:
    """The JSON value with every text in it changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_each_text(inner, change) for inner in value]
    return value
