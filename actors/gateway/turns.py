"""One turn: open the history at a request's messages, sample, take apart, record; and the limits that end episodes.

What is recorded is in the journal before it is answered, and an earlier process's turns are recalled from there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import Counter
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.agent.journal import NO_JOURNAL, Journal, Turned
from actors.agent.prefix import Prefix
from actors.gateway.asks import Answer, Ask, Call, Ended, Refusal, TokenLogprob, Usage
from actors.gateway.journal import Played, Refused
from actors.gateway.reading import Reader, Reading
from actors.gateway.stops import cut_at
from actors.history.conversation import Conversation, Prompt
from actors.policy import Policy, Request, Sampled
from protocol.errors import ConfigError, GeneratorError
from protocol.messages import EndReason, Sampling

MOST_KEPT = 64  # answers kept for `previous`


class Terms(Struct, frozen=True, kw_only=True):
    """Under what an episode is played."""

    episode_id: str
    version: int  # the policy's at the start
    sampling: Sampling
    max_turns: int
    max_context: int  # tokens
    max_turn_tokens: int
    wall_time_s: float
    request_timeout_s: float = 300.0
    reuse_versions: int | None = None
    no_tools: str = ""  # why tool calls cannot be served, where they cannot
    most_calls: int | None = None  # of one turn, where the chat template carries no more


class TurnRecord(Struct, frozen=True, kw_only=True):
    """One turn that was answered, for people and for the trajectory's figures."""

    start: int  # its tokens in the history
    end: int
    text: str
    num_prompt: int
    with_tools: bool  # whether tools were shown
    missed_call: bool  # a call was demanded and not made: the agent got an error in the turn's place
    cached_version: int | None
    generate_s: float
    began_at: float  # monotonic
    finished_at: float
    at: float  # seconds since the epoch: when it was finished


class Turns:
    """The turns of one episode.

    Attributes:
        journal: where they are written down.
        done: those that were sampled and recorded.
        ended: why the episode is over, once a limit has ended it.
        over: set at that moment.
    """

    def __init__(
        self,
        terms: Terms,
        conversation: Conversation,
        policy: Policy,
        tokenizer: ChatTokenizer,
        reader: Reader,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        self.terms, self.journal = terms, journal
        self.done: list[TurnRecord] = []
        self.counts: Counter[str] = Counter()
        self.ended: EndReason | None = None
        self.over = asyncio.Event()
        self._conversation, self._policy, self._tokenizer, self._reader = conversation, policy, tokenizer, reader
        self._prefix = Prefix(terms.episode_id, terms.version, terms.reuse_versions)
        self._deadline = time.monotonic() + terms.wall_time_s
        self._numbers = itertools.count()
        self._kept: dict[str, list[dict[str, Any]]] = {}

    @property
    def time_left_s(self) -> float:
        """Seconds until the wall-time limit."""
        return self._deadline - time.monotonic()

    def count(self, ask: Ask) -> int:
        """Tokens of a request's prompt. Raises `Refusal`."""
        return len(self._open(ask).token_ids)

    def end(self, reason: EndReason) -> None:
        """The episode is over; further requests are refused."""
        if self.ended is None:
            self.ended = reason
            self.over.set()

    def check_open(self) -> None:
        """Raise `Refusal` once a limit is reached."""
        if self.ended is None and len(self.done) >= self.terms.max_turns:
            self.end("max_turns")
        if self.ended is None and self.time_left_s <= 0:
            self.end("wall_time")
        if self.ended is not None:
            raise _over(self.ended)

    def recall(self, played: Played) -> None:
        """A turn of an earlier process: it counts as if it had been played here. The wall time stood still since."""
        self._record(played, played.prompt, played.turned.sampled)
        self._prefix.saw(played.turned.sampled.versions)
        self._numbers = itertools.count(len(self.done))
        self._deadline = time.monotonic() + self.terms.wall_time_s - played.turned.elapsed_s
        if played.ended is not None:
            self.end(played.ended)

    async def play(self, ask: Ask, connection: int | None = None) -> Answer:
        """The turn that `ask` asks for. Raises `Refusal`, `GeneratorError` or `DeadlineError`.

        Args:
            connection: that it came over; see `actors/gateway/journal.py`.
        """
        prompt = self._open(ask)
        room = self.terms.max_context - len(prompt.token_ids)
        if room <= 0:
            self.end("context")
            raise _context(len(prompt.token_ids) + 1, self.terms.max_context)
        limits = (room, self.terms.max_turn_tokens, self.terms.sampling.max_tokens, ask.max_tokens)
        max_tokens = min(limit for limit in limits if limit is not None)
        began = time.monotonic()
        sampled = await self._sample(prompt.token_ids, max_tokens)
        cached_version = self._prefix.reused(sampled)
        sampled, stop_string = cut_at(ask.stop, sampled, self._tokenizer)
        self._prefix.saw(sampled.versions)
        looked_for = [] if ask.tool_choice == "none" else ask.tools
        reading = await self._reader.read(prompt.token_ids, sampled.token_ids, looked_for)
        answer = self._to_answer(ask, sampled, reading, stop_string, len(prompt.token_ids))
        missed, refusal = _missed(ask, answer), None
        if sampled.finish_reason == "length" and max_tokens == room:  # half an action is not shown
            self.end("context")
            refusal = _context(self.terms.max_context + 1, self.terms.max_context)
        elif missed:
            refusal = Refusal("invalid", missed, param="tool_choice")
        now = time.monotonic()
        played = Played(
            connection=connection,
            fingerprint=ask.fingerprint(),
            place=prompt.place,
            token_ids=prompt.token_ids[prompt.place.num_base :].tobytes(),
            drift=prompt.drift,
            turned=Turned.of(
                sampled,
                is_last=self.ended == "context",
                cached_version=cached_version,
                generate_s=now - began,
                elapsed_s=self.terms.wall_time_s - self.time_left_s,
                at=time.time(),
            ),
            answer=answer,
            refused=Refused.of(connection or 0, refusal, self.ended) if refusal else None,
            with_tools=bool(ask.tools),
            missed_call=bool(missed),
            began_at=began,
            finished_at=now,
            ended=self.ended,
            messages=ask.messages if ask.is_stored else None,
            previous=ask.previous,
        )
        self._record(played, prompt, sampled)
        self.journal.add(played)  # nobody waits in between: both happen, or neither
        if refusal is not None:
            raise refusal
        return answer

    def _record(self, played: Played, prompt: Prompt, sampled: Sampled) -> None:
        """Keep a turn: in the history, among those that are done, and, if it is stored, under its answer's id."""
        recorded = self._conversation.record(prompt, sampled, played.answer.message())
        self._keep(played)
        self.done.append(
            TurnRecord(
                start=recorded.start,
                end=recorded.end,
                text=self._tokenizer.decode(sampled.token_ids),
                num_prompt=played.answer.usage.prompt,
                with_tools=played.with_tools,
                missed_call=played.missed_call,
                cached_version=played.turned.cached_version,
                generate_s=played.turned.generate_s,
                began_at=played.began_at,
                finished_at=played.finished_at,
                at=played.turned.at,
            )
        )

    def _open(self, ask: Ask) -> Prompt:
        if ask.tools and self.terms.no_tools:
            raise Refusal("invalid", self.terms.no_tools, param="tools")
        messages = ask.messages
        if ask.previous is not None:
            if ask.previous not in self._kept:
                raise Refusal(
                    "missing", f"no answer {ask.previous} of this episode is kept", param="previous_response_id"
                )
            messages = [*self._kept[ask.previous], *messages]
        num_chars = sum(len(str(message.get("content", ""))) for message in messages)
        if num_chars > self.terms.max_context * self._tokenizer.most_chars:
            self.end("context")
            raise _context(num_chars // self._tokenizer.most_chars, self.terms.max_context)
        try:
            return self._conversation.open(messages, ask.tools or None)
        except ConfigError as error:
            raise Refusal("invalid", str(error), param="messages") from error

    async def _sample(self, token_ids: np.ndarray, max_tokens: int) -> Sampled:
        terms, number = self.terms, next(self._numbers)
        seed = None if terms.sampling.seed is None else terms.sampling.seed + number
        request = Request(
            episode_id=terms.episode_id,
            token_ids=token_ids,
            sampling=msgspec.structs.replace(terms.sampling, max_tokens=max_tokens, seed=seed),
            stop_token_ids=self._tokenizer.stop_token_ids,
            cache_salt=self._prefix.salt,
            timeout_s=terms.request_timeout_s,
        )
        try:
            async with asyncio.timeout(self.time_left_s) as wall_time:
                sampled = await self._policy.generate(request)
        except TimeoutError:
            if wall_time.expired():
                self.end("wall_time")
                raise _over("wall_time") from None
            raise
        except GeneratorError as error:
            if error.kind == "context":
                self.end("context")
                raise _context(len(token_ids) + 1, terms.max_context) from error
            raise
        if sampled.finish_reason == "cancelled":
            raise GeneratorError(f"the generator cancelled a turn of episode {terms.episode_id}", kind="lost")
        return sampled

    def _to_answer(
        self, ask: Ask, sampled: Sampled, reading: Reading, stop_string: str | None, num_prompt: int
    ) -> Answer:
        calls = reading.calls[: self.terms.most_calls if ask.parallel else 1]
        self.counts["calls_dropped"] += len(reading.calls) - len(calls)
        ended: Ended = "length" if sampled.finish_reason == "length" else "stop"
        content, reasoning = reading.content, reading.reasoning
        if stop_string is not None:
            ended = "stop_string"
            content, reasoning = content.partition(stop_string)[0], reasoning.partition(stop_string)[0]
        elif calls and ended == "stop":
            ended = "tool_calls"
        return Answer(
            content=content,
            reasoning=reasoning,
            calls=[Call(id=f"call_{uuid.uuid4().hex[:24]}", name=c.name, arguments=c.arguments) for c in calls],
            ended=ended,
            stop_string=stop_string,
            logprobs=self._logprobs(sampled) if ask.logprobs else [],
            usage=Usage(
                prompt=num_prompt,
                cached=sampled.num_cached_tokens,
                sampled=len(sampled.token_ids),
                reasoning=reading.num_reasoning_tokens,
            ),
        )

    def _logprobs(self, sampled: Sampled) -> list[TokenLogprob]:
        stops = self._tokenizer.stop_token_ids
        pairs = zip(sampled.token_ids.tolist(), sampled.logprobs.tolist(), strict=True)
        shown = [(token, logprob) for token, logprob in pairs if token not in stops]
        return [TokenLogprob(text=self._tokenizer.decode([token]), logprob=logprob) for token, logprob in shown]

    def _keep(self, played: Played) -> None:
        if played.messages is None:
            return
        before = self._kept.get(played.previous, []) if played.previous is not None else []
        self._kept[f"resp_{played.answer.id}"] = [*before, *played.messages, played.answer.message()]
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]


def _missed(ask: Ask, answer: Answer) -> str:
    """A call that was demanded and not made is said, not papered over: answers are sampled freely."""
    name = ask.tool_choice.removeprefix("=")
    demanded = ask.tool_choice == "required" or ask.tool_choice.startswith("=")
    made = any(ask.tool_choice == "required" or call.name == name for call in answer.calls)
    if not demanded or made:
        return ""
    what = "a tool" if ask.tool_choice == "required" else name
    return f"the model did not call {what}; calls cannot be forced here"


def _context(num_tokens: int, most: int) -> Refusal:
    return Refusal(
        "context",
        f"This model's maximum context length is {most} tokens. However, your messages resulted in at least "
        f"{num_tokens} tokens; prompt is too long. The episode is over.",
        param="messages",
    )


def _over(reason: EndReason) -> Refusal:
    return Refusal("ended", f"the episode is over ({reason}); its work is judged as it stands")
