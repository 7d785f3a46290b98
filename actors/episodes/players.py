"""Who plays the episodes: the built-in loop in this process, or an agent from outside through the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from actors.agent.chat import Chat, ChatTokenizer
from actors.agent.episode import Activity, Assignment, Episode
from actors.agent.loop import Agent
from actors.agent.scaffolds import make_scaffold
from actors.gateway.server import Exchange
from actors.harnesses.foreign import ForeignAgent
from actors.harnesses.readers import make_reader
from actors.policy import Policy
from protocol.config import EpisodeSettings, Settings
from sandbox.base import Sandbox

OnActivity = Callable[[str, Activity], None]


class Player(Protocol):
    """Plays episodes, many at once."""

    goes_on: bool
    """Whether it goes on with an episode that another process began, from the journal."""

    @property
    def binds(self) -> dict[str, str]:
        """What its sandboxes show besides, read-only: host path -> path inside."""
        ...

    async def start(self) -> None:
        """Before the first episode. Raises `ConfigError`."""
        ...

    async def stop(self) -> None:
        """After the last."""
        ...

    def opening(self, issue: str) -> Chat:
        """What people are shown as the conversation's beginning."""
        ...

    def status(self) -> dict[str, float]:
        """Metrics by name."""
        ...

    async def run(self, assigned: Assignment, sandbox: Sandbox) -> Episode:
        """See `Agent.run`."""
        ...

    def recall(self, assigned: Assignment) -> Episode:
        """See `Agent.recall`."""
        ...


class BuiltIn:
    """The loop of `actors/agent/`; see `Player`."""

    goes_on = True
    binds: dict[str, str] = {}  # noqa: RUF012  (never changed: it needs no files)

    def __init__(self, settings: Settings, policy: Policy, tokenizer: ChatTokenizer, on_activity: OnActivity) -> None:
        episode = _with_scaffold(settings)
        self._scaffold = make_scaffold(episode, tokenizer)
        self._agent = Agent(
            policy,
            tokenizer,
            self._scaffold,
            episode,
            request_timeout_s=settings.generator.request_timeout_s,
            reuse_versions=settings.generator.reuse_versions,
            on_activity=on_activity,
        )

    async def start(self) -> None:
        """See `Player.start`."""

    async def stop(self) -> None:
        """See `Player.stop`."""

    def opening(self, issue: str) -> Chat:
        """See `Player.opening`."""
        return self._scaffold.open(issue)

    def status(self) -> dict[str, float]:
        """See `Player.status`."""
        return {}

    async def run(self, assigned: Assignment, sandbox: Sandbox) -> Episode:
        """See `Player.run`."""
        return await self._agent.run(assigned, sandbox)

    def recall(self, assigned: Assignment) -> Episode:
        """See `Player.recall`."""
        return self._agent.recall(assigned)


def make_player(
    settings: Settings,
    policy: Policy,
    tokenizer: ChatTokenizer,
    on_activity: OnActivity,
    on_exchange: Callable[[Exchange], None],
) -> Player:
    """Who `agent.harness` names. Raises `ConfigError`."""
    if settings.agent.is_built_in:
        return BuiltIn(settings, policy, tokenizer, on_activity)
    reader = make_reader(settings.agent, policy, tokenizer)
    return ForeignAgent(settings, policy, tokenizer, reader, on_activity=on_activity, on_exchange=on_exchange)


def _with_scaffold(settings: Settings) -> EpisodeSettings:
    if settings.agent.harness in ("react", "json"):
        return settings.episode.model_copy(update={"scaffold": settings.agent.harness})
    return settings.episode
