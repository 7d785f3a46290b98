"""`[agent]`: who plays the episodes: the built-in loop, or an agent from outside through the gateway."""

from __future__ import annotations

from typing import Literal

from protocol.section import Seconds, Section

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
    binds: dict[str, str] = {}
    """Read-only files of the agent in its sandbox: path here -> path there."""
    env: dict[str, str] = {}
    """`command`: variables besides."""
    model: str = "longhaul"
    """Name under which agents find the model."""
    tool_parser: str = "auto"
    """vLLM's parser of tool calls; auto: by the chat template's marks; none: tools are refused."""
    reasoning_parser: str = "auto"
    """vLLM's parser of reasoning; auto: by the chat template's marks; none: reasoning is left in the text."""
    grace_s: Seconds = 5
    """Once a limit has ended an episode, its agent has so long to end by itself."""
