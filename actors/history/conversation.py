"""A conversation that its agent may rewrite, held as a token tree.

What never breaks:

1. *As rendered.* What the model sees is the chat template's text of the whole conversation, with one exception: where
   it writes an earlier turn of the model's, the tokens stand that were sampled.
2. *As sampled, unless rewritten.* The exception holds as long as the template still writes that turn: every word of
   its reasoning and content, every call, and the close that was sampled. How it spaces, quotes or escapes them does not
   count. Once it leaves out any of these (Qwen3 drops the reasoning of turns before the last question) or writes
   another close, the turn is rendered as the template has it now: cause `template`.
3. *Once.* A sampled token has one place in the tree, and no other token of the tree is sampled. The tree shares what
   is equal from the root on and branches at the first token that differs.
4. *Boundaries.* Text is tokenized from the close of a turn that stands as sampled, or from the conversation's
   beginning, up to where the next turn begins. So the same conversation gives the same ids, however it was reached.

`open` changes nothing; `record` does. A turn that fails in between leaves no trace, and turns may be open side by side.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.agent.tree import ROOT, TokenTree, check_sampled
from actors.history.marks import Found, Marked
from actors.history.matching import Message, answer_key, call_names, digest, given_key, read, renamed
from actors.history.rendering import Rendering
from actors.policy import Sampled

Drift = Literal["template", "edited", "foreign"]
"""Why tokens of the history had to be rendered anew. `template`: the template writes an earlier turn otherwise than it
was sampled, and what follows it. `edited`: the agent changed its past, and this follows the change. `foreign`: an
assistant's message that was not sampled here."""


class Turn(Struct, frozen=True, kw_only=True):
    """What was recorded."""

    message: Message
    start: int  # sampled tokens of the tree
    end: int
    given: list[Message]  # messages that came since the turn that it goes on from
    sampled_ids: np.ndarray
    last_sampled: int | None  # None: it was cut
    prompt_length: int  # characters of its prompt's text
    prompt_digest: bytes


class Place(Struct, frozen=True, kw_only=True):
    """Where a prompt stands in the tree."""

    base: int  # last token of the turn that it goes on from
    num_base: int  # tokens of the prompt up to there
    past: bytes  # names its messages
    given: list[Message]
    text_length: int
    text_digest: bytes


class Prompt(Struct, frozen=True, kw_only=True):
    """What to send to the policy, and how much of it is new."""

    token_ids: np.ndarray  # int32 [n]
    place: Place
    num_reused: int  # tokens that the tree has already
    drift: dict[Drift, int]  # tokens of the history among the others, by why they are rendered anew


class _Said(Struct, frozen=True):
    """A message of a request, and the turn that it repeats."""

    message: Message
    turn: Turn | None
    in_place: bool  # the turn was sampled after these very messages


class _Span(Struct, frozen=True):
    """Where the template writes a turn: in the text, from the turn's first character to its close."""

    turn: Turn
    start: int
    close: int


class _Layout(Struct, frozen=True):
    """A text's turns that stand as sampled; the first is the base, unless the prompt begins at the root."""

    base: int
    spans: list[_Span]
    found: Found


class Conversation:
    """Of one episode.

    Attributes:
        tree: the tokens.
        turns: what was recorded, in order.
        drift: tokens rendered anew in the prompts of recorded turns, by cause.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tree = TokenTree()
        self.turns: list[Turn] = []
        self.drift: Counter[str] = Counter(dict.fromkeys(get_args(Drift), 0))
        self._rendering = Rendering(tokenizer)
        self._in_place: dict[bytes, Turn] = {}
        self._said: dict[bytes, Turn] = {}

    @property
    def num_branches(self) -> int:
        """Paths of the tree: one while nothing was rewritten."""
        return len(self.tree.branches.leaves())

    def open(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> Prompt:
        """The prompt of the turn that answers `messages`. Raises `ConfigError` if the template refuses them."""
        schemas = self._rendering.tools_as_data(tools)
        said, past = self._recognise(messages, digest("tools", list(tools or ())))
        chat = [each.message for each in said]
        text = self._rendering.write(chat, schemas)
        laid = self._lay_out(said, schemas, text)
        num_base = len(self.tree.branches.path(laid.base))
        new_ids, causes = self._encode(said, text, laid)
        _, num_more = self.tree.follow(laid.base, new_ids)
        counts = np.bincount(causes[num_more:], minlength=len(_CAUSES) + 1)[1:]
        return Prompt(
            token_ids=np.concatenate([self.tree.path_ids(laid.base), new_ids]),
            place=Place(
                base=laid.base,
                num_base=num_base,
                past=past,
                given=chat[max((i + 1 for i, each in enumerate(said) if each.in_place), default=0) :],
                text_length=len(text),
                text_digest=_digest(text),
            ),
            num_reused=num_base + num_more,
            drift={cause: int(count) for cause, count in zip(_CAUSES, counts, strict=True) if count},
        )

    def record(self, prompt: Prompt, sampled: Sampled, message: Mapping[str, Any]) -> Turn:
        """Keep what was sampled after `prompt`, and the message as which the agent sees it and will send it back.

        Raises `GeneratorError` if what was sampled is not well-formed.
        """
        check_sampled(sampled)
        place, ids = prompt.place, prompt.token_ids[prompt.place.num_base :]
        given = [self._rendering.as_said(each) for each in place.given]
        at, num_there = self.tree.follow(place.base, ids)
        at = self.tree.add_given(at, ids[num_there:])
        start, end = self.tree.add_sampled(at, sampled)
        last = int(sampled.token_ids[-1])
        turn = Turn(
            message=self._rendering.as_data(read({**message, "role": "assistant"})),
            start=start,
            end=end,
            given=given,
            sampled_ids=np.asarray(sampled.token_ids, np.int32),
            last_sampled=last if self._rendering.ends_turn(last) else None,
            prompt_length=place.text_length,
            prompt_digest=place.text_digest,
        )
        key = answer_key(turn.message)
        self._in_place[digest(place.past, key)] = self._said[key] = turn
        self.drift.update(prompt.drift)
        self.turns.append(turn)
        return turn

    def _recognise(self, messages: Sequence[Mapping[str, Any]], past: bytes) -> tuple[list[_Said], bytes]:
        """Every message, a turn's as it was recorded, and the name of them all."""
        said: list[_Said] = []
        call_ids: dict[str, str] = {}
        for each in messages:
            message = self._rendering.as_data(read(each))
            if message["role"] != "assistant":
                message = renamed(message, call_ids)
                past = digest(past, given_key(message))
                said.append(_Said(message, None, False))
                continue
            key = answer_key(message)
            past = digest(past, key)
            here = self._in_place.get(past)
            turn = here or self._said.get(key)
            if turn is not None:
                call_ids.update(call_names(message, turn.message))
            said.append(_Said(turn.message if turn else message, turn, here is not None))
        return said, past

    def _lay_out(self, said: Sequence[_Said], tools: list[dict[str, Any]] | None, text: str) -> _Layout:
        """Which turns stand as sampled in `text`, beginning with the last whose whole prompt does."""
        for index in range(len(said) - 1, -1, -1):
            turn = said[index].turn
            if turn is None or not said[index].in_place or not _begins_with_prompt(text, turn):
                continue
            found = self._find(said, tools, text, index)
            close = self._close(found, turn, index, len(said), text)
            if close is not None:
                base = _Span(turn, turn.prompt_length, close)
                return _Layout(turn.end - 1, [base, *self._spans(said, tools, text, found, index + 1, close)], found)
        found = self._find(said, tools, text, 0)
        return _Layout(ROOT, self._spans(said, tools, text, found, 0, 0), found)

    def _find(self, said: Sequence[_Said], tools: list[dict[str, Any]] | None, text: str, first: int) -> Found:
        chat, turns = [each.message for each in said], frozenset(i for i, each in enumerate(said) if each.turn)
        found = self._rendering.find(chat, tools, text, Marked(chat, first, turns, bare=True))
        return found or self._rendering.find(chat, tools, text, Marked(chat, first, turns, bare=False))

    def _close(self, found: Found, turn: Turn, index: int, num_messages: int, text: str) -> int | None:
        """Where the close of message `index` begins; None if the template writes another turn than was sampled."""
        extent = found.extent(index)
        if extent is None:
            return None
        end = found.begins(index + 1, extent[1]) if index + 1 < num_messages else len(text)
        return None if end is None else self._rendering.close_of(turn.last_sampled, text, extent[1], end)

    def _spans(
        self,
        said: Sequence[_Said],
        tools: list[dict[str, Any]] | None,
        text: str,
        found: Found,
        first: int,
        after: int,
    ) -> list[_Span]:
        """Turns from message `first` on, which stand behind `after`, that the template still writes as sampled."""
        spans: list[_Span] = []
        chat = [each.message for each in said]
        openings: dict[str, str] = {}
        for index in range(max(first, 1), len(said)):
            turn = said[index].turn
            extent = found.extent(index) if turn else None
            if turn is None or extent is None:
                continue
            role = chat[index - 1]["role"]
            if role not in openings:
                openings[role] = self._rendering.opening(chat[:index], tools)
            opening = openings[role]
            start = text.rfind(opening, after, extent[0]) if opening else -1
            close = self._close(found, turn, index, len(said), text)
            if start >= 0 and close is not None:
                spans.append(_Span(turn, start + len(opening), close))
                after = close
        return spans

    def _encode(self, said: Sequence[_Said], text: str, laid: _Layout) -> tuple[np.ndarray, np.ndarray]:
        """Ids (int32 [n]) of what follows the base, and why each is there (int64 [n]): 0, or one more than its place in
        `_CAUSES`."""
        ids: list[np.ndarray] = []
        causes: list[np.ndarray] = []
        places, labels = self._labels(said, laid)
        begin, closed_by = 0, None
        for span in laid.spans:
            if span.turn.end - 1 != laid.base:
                self._add_piece(ids, causes, text[begin : span.start], closed_by, places - begin, labels)
                ids.append(span.turn.sampled_ids)
                causes.append(np.zeros(len(span.turn.sampled_ids), np.int64))
            begin, closed_by = span.close, span.turn.last_sampled
        self._add_piece(ids, causes, text[begin:], closed_by, places - begin, labels)
        return np.concatenate(ids, dtype=np.int32, casting="same_kind"), np.concatenate(causes)

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

    def _labels(self, said: Sequence[_Said], laid: _Layout) -> tuple[np.ndarray, np.ndarray]:
        """Where every message begins in the text (int64), and why it is rendered anew if it is (int64, see `_encode`).

        A message that cannot be found begins where the one before it does.
        """
        last_in_place = max((i for i, each in enumerate(said) if each.in_place), default=-1)
        last_known = max((i for i, each in enumerate(said) if each.turn), default=-1)
        as_sampled = {id(span.turn) for span in laid.spans}
        places: list[int] = []
        labels: list[int] = []
        for index, each in enumerate(said):
            before = places[-1] if places else 0
            places.append(max(laid.found.begins(index, before) or before, before))
            if each.turn is not None:
                cause = 0 if id(each.turn) in as_sampled else _TEMPLATE
            elif each.message["role"] == "assistant":
                cause = _FOREIGN
            else:
                cause = _TEMPLATE if index < last_in_place else _EDITED if index < last_known else 0
            labels.append(cause)
        return np.array(places, np.int64), np.array(labels, np.int64)


_CAUSES: tuple[Drift, ...] = get_args(Drift)
_TEMPLATE, _EDITED, _FOREIGN = (_CAUSES.index(cause) + 1 for cause in ("template", "edited", "foreign"))


def _begins_with_prompt(text: str, turn: Turn) -> bool:
    return len(text) >= turn.prompt_length and _digest(text[: turn.prompt_length]) == turn.prompt_digest


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
