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

Clients drop reasoning, so turns that differ in nothing else look the same: the last of them is taken, first among those
that were sampled after the very messages that come before it in the request, then among all.

`open` changes nothing; `record` does. A turn that fails in between leaves no trace, and turns may be open side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.agent.tree import TokenTree, check_sampled
from actors.history.laying import CAUSES, Drift, Laying
from actors.history.matching import Message, answer_key, call_names, digest, given_key, read, renamed
from actors.history.rendering import Rendering
from actors.history.turns import Said, Turn, digest_of
from actors.policy import Sampled


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
        self.drift: Counter[str] = Counter(dict.fromkeys(CAUSES, 0))
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
        laid = Laying(self._rendering, said, schemas, text).lay_out()
        before = self.tree.path_ids(laid.base)
        _, num_more = self.tree.follow(laid.base, laid.ids)
        counts = np.bincount(laid.causes[num_more:], minlength=len(CAUSES) + 1)[1:]
        return Prompt(
            token_ids=np.concatenate([before, laid.ids]),
            place=Place(
                base=laid.base,
                num_base=len(before),
                past=past,
                given=chat[max((i + 1 for i, each in enumerate(said) if each.in_place), default=0) :],
                text_length=len(text),
                text_digest=digest_of(text),
            ),
            num_reused=len(before) + num_more,
            drift={cause: int(count) for cause, count in zip(CAUSES, counts, strict=True) if count},
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

    def _recognise(self, messages: Sequence[Mapping[str, Any]], past: bytes) -> tuple[list[Said], bytes]:
        """Every message, a turn's as it was recorded, and the name of them all."""
        said: list[Said] = []
        call_ids: dict[str, str] = {}
        for each in messages:
            message = self._rendering.as_data(read(each))
            if message["role"] != "assistant":
                message = renamed(message, call_ids)
                past = digest(past, given_key(message))
                said.append(Said(message, None, False))
                continue
            key = answer_key(message)
            past = digest(past, key)
            here = self._in_place.get(past)
            turn = here or self._said.get(key)
            if turn is not None:
                call_ids.update(call_names(message, turn.message))
            said.append(Said(turn.message if turn else message, turn, here is not None))
        return said, past
