"""What a harness is: how one agent is installed, started in a sandbox and told its issue."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

ROOM = "/tmp/longhaul-agent"  # inside: the issue, the agent's home and configuration; no part of the work
HOME = f"{ROOM}/home"
ISSUE = f"{ROOM}/issue.md"
ASKED = f"{ROOM}/asked.txt"  # inside: what an agent that takes its task as an argument is asked


class Visit(Struct, frozen=True, kw_only=True):
    """What an agent is told of the episode that it is to play."""

    issue: str
    url: str  # of the gateway as seen from inside, such as http://127.0.0.1:41234
    key: str
    model: str
    workdir: str
    max_context: int  # tokens

    @property
    def openai_url(self) -> str:
        """What OpenAI's clients call a base address."""
        return f"{self.url}/v1"


class Launch(Struct, frozen=True, kw_only=True):
    """How an agent is started: a command in the work directory, with files that are written before."""

    argv: list[str]
    env: dict[str, str] = {}
    files: dict[str, str] = {}  # path inside -> content


class Harness(Protocol):
    """One agent."""

    name: str
    needs_tools: bool
    """Whether it works by tool calls: then the model's chat template must be able to carry them."""

    def install(self) -> dict[str, str]:
        """Have its files here; what is to be bound into sandboxes, read-only: host path -> path inside.

        Once a host; takes minutes the first time. Raises `ConfigError` where it cannot be had.
        """
        ...

    def launch(self, visit: Visit) -> Launch:
        """How it is started for one episode."""
        ...


def variables(visit: Visit) -> dict[str, str]:
    """The environment variables that the SDKs read, and a home of the episode's own."""
    return {
        "HOME": HOME,
        "XDG_CONFIG_HOME": f"{HOME}/.config",
        "XDG_DATA_HOME": f"{HOME}/.local/share",
        "XDG_CACHE_HOME": f"{HOME}/.cache",
        "NO_PROXY": "127.0.0.1,localhost",
        "LONGHAUL_ISSUE": ISSUE,
        "OPENAI_BASE_URL": visit.openai_url,
        "OPENAI_API_BASE": visit.openai_url,
        "OPENAI_API_KEY": visit.key,
        "OPENAI_MODEL": visit.model,
        "ANTHROPIC_BASE_URL": visit.url,
        "ANTHROPIC_API_KEY": visit.key,
        "ANTHROPIC_MODEL": visit.model,
    }
