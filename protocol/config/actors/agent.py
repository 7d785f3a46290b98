"""`[agent]`: who plays the episodes: the built-in loop, or an agent from outside through the gateway."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from protocol.section import Seconds, Section, expanded

HarnessName = Literal[
    "scaffold",
    "react",
    "json",
    "command",
    "python",
    "mini-swe-agent",
    "qwen-code",
    "opencode",
    "claude-code",
    "codex",
]


class AgentSettings(Section):
    """Who plays the episodes."""

    harness: HarnessName = "scaffold"
    """`scaffold`: the built-in loop that episode.scaffold names; `react`, `json`: one of the two. The others
    are agents from outside, trained through the gateway (docs/35-own-agent.md): `command` runs agent.command in the
    sandbox, `python` calls agent.function in this process, the rest are released agents, installed once and pinned."""
    command: str = ""
    """`command`: a shell line, run in the work directory. The issue is the file `$LONGHAUL_ISSUE`; `OPENAI_BASE_URL`,
    `OPENAI_API_KEY`, `ANTHROPIC_BASE_URL` and their like are set."""
    function: str = ""
    """`python`: `package.module:solve` or `path/to/file.py:solve`, an `async def solve(issue, client, sandbox)`, where
    `client` is an `openai.AsyncOpenAI`."""
    binds: list[str] = []
    """`command`: what its sandbox shows besides, read-only, each `path here:path there`."""
    env: list[str] = []
    """`command`: variables besides, each `NAME=value`."""
    model: str = "longhaul"
    """Name under which agents find the model."""
    tool_parser: str = "auto"
    """vLLM's parser of tool calls; auto: by the chat template's marks; none: tools are refused."""
    reasoning_parser: str = "auto"
    """vLLM's parser of reasoning; auto: by the chat template's marks; none: reasoning is left in the text."""
    train: Literal["all", "with_tools"] = "all"
    """Which turns are trained. `all`: every one. `with_tools`: where an agent works by tool calls, turns that it asks
    for without tools (titles, summaries) are context: not trained, and no turns in the record."""
    grace_s: Seconds = 5
    """Once a limit has ended an episode, its agent has so long to end by itself."""

    @property
    def shown(self) -> dict[str, str]:
        """`binds`: path here -> path there."""
        return {here: there for here, _, there in (bind.rpartition(":") for bind in self.binds)}

    @property
    def is_built_in(self) -> bool:
        """Whether a loop of this process plays."""
        return self.harness in ("scaffold", "react", "json")

    @property
    def variables(self) -> dict[str, str]:
        """`env`, by name."""
        return {name: value for name, _, value in (variable.partition("=") for variable in self.env)}

    @field_validator("binds")
    @classmethod
    def _where_the_user_stands(cls, binds: list[str]) -> list[str]:
        """Paths are the launching user's: processes of the run stand elsewhere."""
        for bind in binds:
            here, _, there = bind.rpartition(":")
            if not here or not there.startswith("/"):
                raise ValueError(f"expected `path here:/path/there`, got {bind!r}")
        pairs = (bind.rsplit(":", 1) for bind in binds)
        return [f"{expanded(here).absolute()}:{there}" for here, there in pairs]

    @field_validator("env")
    @classmethod
    def _named(cls, env: list[str]) -> list[str]:
        for variable in env:
            if not variable.partition("=")[0] or "=" not in variable:
                raise ValueError(f"expected `NAME=value`, got {variable!r}")
        return env

    @field_validator("function")
    @classmethod
    def _whole_path(cls, function: str) -> str:
        where, colon, name = function.rpartition(":")
        return f"{expanded(where).absolute()}:{name}" if colon and where.endswith(".py") else function
