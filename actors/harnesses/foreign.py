"""Agents from outside as the episodes' runner knows agents: an issue and a sandbox in, an `Episode` out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

from actors.agent.chat import Chat, ChatTokenizer
from actors.agent.episode import Activity, Assignment, Episode, Step
from actors.agent.journal import NO_JOURNAL, Journal, Over
from actors.gateway.journal import Seated
from actors.gateway.reading import Reader
from actors.gateway.round_trip import ToolCarrying, tools_carried
from actors.gateway.seat import Seat
from actors.gateway.server import Exchange, Gateway
from actors.gateway.turns import Terms, TurnRecord, Turns
from actors.harnesses.playing import Telling, play
from actors.harnesses.python_function import load_function, play_function
from actors.harnesses.table import make_harness
from actors.history.conversation import Conversation
from actors.history.turns import Turn
from actors.policy import Policy
from protocol.config import Settings
from protocol.errors import AgentError, ConfigError, GeneratorError
from protocol.messages import EndReason
from sandbox.base import Sandbox

log = logging.getLogger(__name__)

RETRY_S = 0.5


class ForeignAgent:
    """Plays episodes of one agent from outside; one instance serves many at once. `await start()` comes first.

    Args:
        reader: takes sampled turns apart.
        on_exchange: hears of every request.

    Attributes:
        goes_on: whether it goes on with episodes of an earlier process: an agent lives on in its sandbox, a function
            that was called there does not.
        gateway: through which they get their tokens.
        binds: what their sandboxes show, read-only: host path -> path inside.
    """

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        tokenizer: ChatTokenizer,
        reader: Reader,
        *,
        on_activity: Callable[[str, Activity], None] = lambda episode_id, activity: None,
        on_exchange: Callable[[Exchange], None] = lambda exchange: None,
    ) -> None:
        self._settings = settings
        self._policy, self._tokenizer, self._reader = policy, tokenizer, reader
        self._tools = ToolCarrying()
        self._on_activity = on_activity
        self._harness = make_harness(settings.agent, Path(settings.tasks.cache_dir))
        self._solve = load_function(settings.agent.function) if settings.agent.harness == "python" else None
        self.goes_on = self._harness is not None
        self.gateway = Gateway(settings.agent.model, on_exchange)
        self.binds: dict[str, str] = {}

    async def start(self) -> None:
        """Prove that the model's template can carry the agent's calls, have the agent's files (minutes, the first time
        on a host), open the gateway. Raises `ConfigError`."""
        self._tools = await self._prove_tools()
        if self._tools.why_not:
            if self._harness is not None and self._harness.needs_tools:
                raise ConfigError(f"{self._harness.name} works by tool calls, but {self._tools.why_not}", kind="agent")
            log.info("tool calls are refused: %s", self._tools.why_not)
        if self._harness is not None:
            self.binds = await asyncio.to_thread(self._harness.install)
        await self.gateway.start(listen=self._solve is not None)

    async def _prove_tools(self) -> ToolCarrying:
        """Waits, at most `start_timeout_s`, for a generator that starts meanwhile."""
        until = time.monotonic() + self._settings.start_timeout_s
        while True:
            try:
                return await tools_carried(self._tokenizer, self._reader)
            except GeneratorError as error:
                if error.kind == "refused":
                    raise ConfigError(f"agent.tool_parser, agent.reasoning_parser: {error}", kind="agent") from error
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(RETRY_S)

    async def stop(self) -> None:
        """Close the gateway."""
        await self.gateway.stop()

    def opening(self, issue: str) -> Chat:
        """Nothing: what the agent makes of the issue comes with its first turn."""
        return []

    def status(self) -> dict[str, float]:
        """Metrics by name."""
        return self.gateway.status()

    def recall(self, assigned: Assignment) -> Episode:
        """See `Agent.recall`."""
        reason = _ended(assigned.journal)
        if reason is None:
            raise AgentError(f"the journal of episode {assigned.episode_id} does not tell its end", kind="resume")
        seat, conversation = self._seat(assigned)
        return self._episode(seat, conversation, reason)

    async def run(self, assigned: Assignment, sandbox: Sandbox) -> Episode:
        """See `Agent.run`. Raises `AgentError` besides, for an agent that never asked for a turn."""
        journal = self._journal(assigned)
        seat, conversation = self._seat(assigned)
        reason = _ended(journal)
        if reason is None:
            await self._play(seat, sandbox, assigned)
            if seat.fault is not None:
                raise seat.fault  # ours, and the agent did not get over it: no verdict on the policy
            reason = seat.turns.ended or "submitted"
            journal.add(Over(reason=reason))
        return self._episode(seat, conversation, reason)

    async def _play(self, seat: Seat, sandbox: Sandbox, assigned: Assignment) -> None:
        """Until the agent has ended; one that an earlier process started goes on, with the key that it has."""
        journal, agent = self._journal(assigned), self._settings.agent
        had = next((entry.key for entry in journal.past if isinstance(entry, Seated)), None)
        key = self.gateway.open(seat, had)
        if had is None:
            journal.add(Seated(key=key))
        self._on_activity(assigned.episode_id, "executing")
        try:
            if self._solve is not None:
                await play_function(self._solve, sandbox, self.gateway.url, seat, key, assigned.issue, agent.grace_s)
            else:
                assert self._harness is not None, "the built-in loops are no agents from outside"
                telling = Telling(model=agent.model, grace_s=agent.grace_s)
                await play(self._harness, sandbox, self.gateway, seat, key, assigned.issue, telling)
        finally:
            self.gateway.close(key)
            await seat.close()

    def _journal(self, assigned: Assignment) -> Journal:
        return assigned.journal if self.goes_on else NO_JOURNAL

    def _seat(self, assigned: Assignment) -> tuple[Seat, Conversation]:
        conversation = Conversation(self._tokenizer)
        journal = self._journal(assigned)
        turns = Turns(self._terms(assigned), conversation, self._policy, self._tokenizer, self._reader, journal)
        return Seat(turns, lambda activity: self._on_activity(assigned.episode_id, activity)), conversation

    def _episode(self, seat: Seat, conversation: Conversation, reason: EndReason) -> Episode:
        turns = seat.turns
        done = list(zip(turns.done, conversation.turns, strict=True))
        if self._settings.agent.train == "with_tools" and any(turn.with_tools for turn in turns.done):
            for turn in turns.done:
                if not turn.with_tools:
                    conversation.tree.disown(turn.start, turn.end)
            done = [(turn, kept) for turn, kept in done if turn.with_tools]
        return Episode(history=conversation.tree, steps=_steps(done), end_reason=reason, drift=dict(conversation.drift))

    def _terms(self, assigned: Assignment) -> Terms:
        settings, limits = self._settings, assigned.limits
        return Terms(
            episode_id=assigned.episode_id,
            version=assigned.version,
            sampling=assigned.sampling,
            max_turns=limits.max_turns,
            max_context=limits.max_context,
            max_turn_tokens=settings.episode.max_turn_tokens,
            wall_time_s=limits.wall_time_s,
            request_timeout_s=settings.generator.request_timeout_s,
            reuse_versions=settings.generator.reuse_versions,
            no_tools=self._tools.why_not,
            most_calls=self._tools.most_calls,
        )


def _ended(journal: Journal) -> EndReason | None:
    return next((entry.reason for entry in journal.past if isinstance(entry, Over)), None)


def _steps(turns: list[tuple[TurnRecord, Turn]]) -> list[Step]:
    """The turns in their order; what an agent did between two of them is its own time."""
    ends = [turn.began_at for turn, _ in turns[1:]]
    return [
        Step(
            start=turn.start,
            end=turn.end,
            text=turn.text,
            given=kept.given,
            format_error=turn.missed_call,
            cached_version=turn.cached_version,
            generate_s=turn.generate_s,
            execute_s=max(0.0, next_began - turn.finished_at) if next_began is not None else 0.0,
            at=turn.at,
        )
        for (turn, kept), next_began in itertools.zip_longest(turns, ends)
    ]
