"""What an agent makes of an issue: its turns, how it ended, its tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from msgspec import Struct

from actors.agent.journal import NO_JOURNAL, Journal
from actors.agent.tree import TokenTree
from protocol.messages import EndReason, Sampling

Activity = Literal["generating", "executing"]


class Limits(Struct, frozen=True, kw_only=True):
    """What ends an episode."""

    max_turns: int
    max_context: int  # tokens
    wall_time_s: float


async def _nothing() -> None:
    """Where the sandbox is not saved."""


class Assignment(Struct, frozen=True, kw_only=True):
    """An episode to be played."""

    issue: str
    episode_id: str
    version: int  # the policy's at the start: no KV of older weights is reused
    sampling: Sampling
    limits: Limits
    journal: Journal = NO_JOURNAL  # what happens is written there; where it has a past, play goes on behind it
    save: Callable[[], Awaitable[None]] = _nothing  # after each answer: the sandbox is now as the journal tells


class Step(Struct, frozen=True, kw_only=True):
    """One turn: what the model wrote (tokens `start:end` of the history) and what it was answered.

    An agent from outside answers its model itself: then `given` has what it sent, beyond the conversation that it goes
    on from.
    """

    start: int
    end: int
    text: str
    observation: str = ""
    given: list[dict[str, Any]] | None = None
    format_error: bool = False
    cached_version: int | None = None  # oldest policy version whose KV may have been reused
    generate_s: float = 0.0
    execute_s: float = 0.0
    at: float = 0.0  # seconds since the epoch: when it was sampled, and its command began


class Episode(Struct, frozen=True, kw_only=True):
    """One finished attempt."""

    history: TokenTree
    steps: list[Step]
    end_reason: EndReason
    drift: dict[str, int] = {}  # see `Trajectory`
