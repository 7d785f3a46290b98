"""Where a template puts what a message says, and whether it puts it anywhere: found by marks in the messages. Pure.

A mark is a character of the last plane of private use, which no text of ours has (`cleaned`). Words of a message are
marked, the template renders the marked messages, and the marks are looked up in what it wrote. They say which words
came through and where, whatever the template does around them; without the marks the text is what it was.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from actors.history.matching import Message

ESCAPE: Final = "\U0010f000"
"""Stands inside the spelling of a control token that is data."""
_FIRST: Final = 0x100000
_KINDS: Final = ("content", "reasoning_content", "call")
_MOST_MESSAGES: Final = (ord(ESCAPE) - _FIRST) // len(_KINDS)
_MARK = re.compile("[\U00100000-\U0010efff]")
_FOREIGN = re.compile("[\ud800-\udfff\U00100000-\U0010ffff]")
_WORD = re.compile(r"(?:^|(?<=[\s>]))(?=[^\s<])")


def cleaned(text: str) -> str:
    """`text` without characters of that plane (nothing is written in them), and without halves of characters."""
    return _FOREIGN.sub("\ufffd", text)


class Marked:
    """Messages with marks from `first` on.

    Args:
        answers: indices of the messages whose every word is marked; of others the first is.
        bare: mark a message without a word, too, which some templates then take for one with words.
    """

    def __init__(self, messages: Sequence[Message], first: int, answers: frozenset[int], bare: bool) -> None:
        self.placed: dict[int, dict[str, int]] = {}
        self.messages = list(messages)
        for index in range(first, min(len(messages), _MOST_MESSAGES)):
            self.messages[index] = self._mark(messages[index], index, index in answers, bare)

    def _mark(self, message: Message, index: int, every: bool, bare: bool) -> Message:
        content, thought, call = (chr(_FIRST + len(_KINDS) * index + kind) for kind in range(len(_KINDS)))
        marked: dict[str, Any] = {**message, "content": _WORD.sub(content, message["content"], count=0 if every else 1)}
        if every and "reasoning_content" in message:
            marked["reasoning_content"] = _WORD.sub(thought, message["reasoning_content"])
        if every and "tool_calls" in message:
            marked["tool_calls"] = [
                {**each, "function": {**each["function"], "name": each["function"]["name"] + call}}
                for each in message["tool_calls"]
            ]
        if bare and marked == message:
            marked["content"] = content + message["content"]
        self.placed[index] = {
            "content": marked["content"].count(content),
            "reasoning_content": marked.get("reasoning_content", "").count(thought),
            "call": len(message.get("tool_calls", ())) if every else 0,
        }
        return marked


class Found:
    """The marks in what a template wrote of `marked`.

    Attributes:
        text: what it wrote, without them.
    """

    def __init__(self, marked: Marked, written: str) -> None:
        self._placed = marked.placed
        self._places: dict[tuple[int, str], list[int]] = defaultdict(list)
        parts, length, end = [], 0, 0
        for match in _MARK.finditer(written):
            parts.append(written[end : match.start()])
            length += match.start() - end
            index, kind = divmod(ord(match[0]) - _FIRST, len(_KINDS))
            self._places[index, _KINDS[kind]].append(length)
            end = match.end()
        self.text = "".join([*parts, written[end:]])

    def __bool__(self) -> bool:
        return bool(self._places)

    def extent(self, index: int) -> tuple[int, int] | None:
        """From the first to the last marked word of a message; None if the template leaves out any of them.

        Names of calls may be repeated further on, by results that say whose they are.
        """
        places: list[int] = []
        for kind, count in self._placed.get(index, {}).items():
            found = self._places.get((index, kind), [])
            if len(found) < count or (kind != "call" and len(found) > count):
                return None
            places += found[:count]
        return (min(places), max(places)) if places else None

    def begins(self, index: int, after: int) -> int | None:
        """Where the first word of a message stands, not before `after`."""
        places = [p for kind in _KINDS for p in self._places.get((index, kind), ()) if p >= after]
        return min(places, default=None)
