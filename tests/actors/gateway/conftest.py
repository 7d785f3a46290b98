"""A gateway with one seat over a scripted policy."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from actors.agent.chat import ChatTokenizer
from actors.agent.journal import NO_JOURNAL, Journal
from actors.gateway.reading import HermesReader
from actors.gateway.seat import Seat
from actors.gateway.server import Gateway
from actors.gateway.turns import Terms, Turns
from actors.policies.scripted import Script, ScriptedPolicy, replay
from actors.policy import Policy
from protocol.messages import Sampling
from tests.actors.gateway.history import TEMPLATE, NotedHistory
from tests.waiting import LONG_S


class Place:
    """What a test works with."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.gateway = Gateway("tiny")
        self.policy: Any = None

    def seat(
        self, policy: Policy | None = None, journal: Journal = NO_JOURNAL, key: str | None = None, **terms: Any
    ) -> tuple[Seat, NotedHistory, str]:
        """One more episode: its seat, its history, its key."""
        history = NotedHistory(self.tokenizer)
        chosen = {"episode_id": "e", "version": 0, "sampling": Sampling(max_tokens=1000), "max_turns": 50}
        chosen |= {
            "max_context": 20_000,
            "max_turn_tokens": 1000,
            "wall_time_s": 600.0,
            "request_timeout_s": LONG_S,
        } | terms
        reader = HermesReader(self.tokenizer)
        seat = Seat(Turns(Terms(**chosen), history, policy or self.policy, self.tokenizer, reader, journal))
        return seat, history, self.gateway.open(seat, key)


@pytest.fixture(scope="session")
def tools_tokenizer(tokenizer: ChatTokenizer) -> ChatTokenizer:
    return tokenizer.with_template(TEMPLATE, "<|im_end|>", ["<|im_start|>", "<|im_end|>"])


@pytest.fixture
def open_place(tools_tokenizer: ChatTokenizer) -> Callable[..., Any]:
    """Opens a gateway on loopback whose policy writes a script."""

    @contextlib.asynccontextmanager
    async def start(script: Script | list[str], latency_s: float = 0.0) -> AsyncIterator[Place]:
        place = Place(tools_tokenizer)
        texts = script if callable(script) else replay(script)
        place.policy = ScriptedPolicy(tools_tokenizer, texts, latency_s=latency_s)
        await place.gateway.start(listen=True)
        try:
            yield place
        finally:
            await place.gateway.stop()

    return start
