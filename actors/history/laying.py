"""Which turns of a conversation stand as sampled in what the template writes of it, and the ids of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from msgspec import Struct

from actors.agent.tree import ROOT
from actors.history.marks import Found, Marked
from actors.history.rendering import Rendering
from actors.history.turns import Said, Turn

Drift = Literal["template", "edited", "foreign"]
"""Why tokens of the history had to be rendered anew. `template`: the template writes an earlier turn otherwise than it
was sampled, and what follows it. `edited`: the agent changed its past, and this follows the change. `foreign`: an
assistant's message that was not sampled here."""
CAUSES: tuple[Drift, ...] = get_args(Drift)
_TEMPLATE, _EDITED, _FOREIGN = (CAUSES.index(cause) + 1 for cause in ("template", "edited", "foreign"))


class Layout(Struct, frozen=True):
    """The ids of a conversation's prompt, behind the turn that it goes on from."""

    base: int  # the last token of that turn, or the root
    ids: np.ndarray  # int32 [n]
    causes: np.ndarray  # int64 [n], why each is there: 0, or one more than its place in `CAUSES`


class _Span(Struct, frozen=True):
    """Where the template writes a turn that stands as sampled."""

    index: int  # of its message
    turn: Turn
    start: int  # in the text
    close: int  # where what the template closes it with begins


class Laying:
    """Lays out one conversation.

    Args:
        said: its messages.
        tools: schemas, as the template takes them.
        text: what the template writes of both.
    """

    def __init__(
        self, rendering: Rendering, said: Sequence[Said], tools: list[dict[str, Any]] | None, text: str
    ) -> None:
        self._rendering = rendering
        self._said = said
        self._chat = [each.message for each in said]
        self._turns = frozenset(index for index, each in enumerate(said) if each.turn is not None)
        self._tools = tools
        self._text = text

    def lay_out(self) -> Layout:
        """The prompt, from the last turn on that stands as sampled behind its own whole prompt."""
        for index in sorted(self._turns, reverse=True):
            turn = self._said[index].turn
            if turn is None or not self._said[index].in_place or not turn.was_asked_by(self._text):
                continue
            found = self._find(index)
            close = self._close(found, turn, index)
            if close is not None:
                base = _Span(index, turn, turn.prompt_length, close)
                return self._encode(found, turn.end - 1, [base, *self._spans(found, index + 1, close)])
        found = self._find(0)
        return self._encode(found, ROOT, self._spans(found, 1, 0))

    def _find(self, first: int) -> Found:
        """The marks of messages from `first` on; none if the template writes something else of marked ones."""
        for bare in (True, False):
            marked = Marked(self._chat, first, self._turns, bare=bare)
            if found := self._rendering.find(self._chat, self._tools, self._text, marked):
                break
        return found

    def _close(self, found: Found, turn: Turn, index: int) -> int | None:
        """Where the close of message `index` begins; None if the template writes another turn than was sampled."""
        extent = found.extent(index)
        if extent is None:
            return None
        end = found.begins(index + 1, extent[1]) if index + 1 < len(self._said) else len(self._text)
        return None if end is None else self._rendering.close_of(turn.last_sampled, self._text, extent[1], end)

    def _spans(self, found: Found, first: int, after: int) -> list[_Span]:
        """Turns from message `first` on, which stand behind `after`, that the template still writes as sampled."""
        spans: list[_Span] = []
        openings: dict[str, str] = {}
        for index in sorted(index for index in self._turns if index >= first):
            turn, extent = self._said[index].turn, found.extent(index)
            if turn is None or extent is None:
                continue
            role = self._chat[index - 1]["role"]
            if role not in openings:
                openings[role] = self._rendering.opening(self._chat[:index], self._tools)
            opening = openings[role]
            start = self._text.rfind(opening, after, extent[0]) if opening else -1
            close = self._close(found, turn, index)
            if start >= 0 and close is not None:
                spans.append(_Span(index, turn, start + len(opening), close))
                after = close
        return spans

    def _encode(self, found: Found, base: int, spans: Sequence[_Span]) -> Layout:
        ids: list[np.ndarray] = []
        causes: list[np.ndarray] = []
        places, labels = self._labels(found, base, spans)
        begin, closed_by = 0, None
        for number, span in enumerate(spans):
            if number or base == ROOT:
                self._add_piece(ids, causes, self._text[begin : span.start], closed_by, places - begin, labels)
                ids.append(span.turn.sampled_ids)
                causes.append(np.zeros(len(span.turn.sampled_ids), np.int64))
            begin, closed_by = span.close, span.turn.last_sampled
        self._add_piece(ids, causes, self._text[begin:], closed_by, places - begin, labels)
        return Layout(base, np.concatenate(ids, dtype=np.int32, casting="same_kind"), np.concatenate(causes))

    def _add_piece(
        self,
        ids: list[np.ndarray],
        causes: list[np.ndarray],
        text: str,
        closed_by: int | None,
        places: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        """Encode what stands between two turns. It begins with the first one's close, which that may have sampled."""
        new = self._rendering.encode(text)
        why = np.zeros(len(new), np.int64)
        if labels.any():
            of_message = np.searchsorted(places, self._rendering.offsets(text), side="right") - 1
            why = labels[np.maximum(of_message, 0)]
        if closed_by is not None:
            assert new[0] == closed_by, "a piece begins with the close that it was cut at"
            new, why = new[1:], why[1:]
        ids.append(new)
        causes.append(why)

    def _labels(self, found: Found, base: int, spans: Sequence[_Span]) -> tuple[np.ndarray, np.ndarray]:
        """Where every message begins in the text (int64), and why it is rendered anew if it is (int64, as causes).

        A message that cannot be found begins where the one before it does.
        """
        first = -1 if base == ROOT else spans[0].index
        last_in_place = max((index for index in self._turns if self._said[index].in_place), default=-1)
        last_known = max(self._turns, default=-1)
        as_sampled = {span.index for span in spans}
        places: list[int] = []
        labels: list[int] = []
        for index, message in enumerate(self._chat):
            before = places[-1] if places else 0
            place = found.begins(index, before)
            places.append(before if place is None else place)
            if index <= first or index in as_sampled:
                labels.append(0)
            elif message["role"] == "assistant":
                labels.append(_TEMPLATE if index in self._turns else _FOREIGN)
            else:
                labels.append(_TEMPLATE if index < last_in_place else _EDITED if index < last_known else 0)
        return np.array(places, np.int64), np.array(labels, np.int64)
