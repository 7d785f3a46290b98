"""Every agent from outside, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actors.harnesses.claude_code import ClaudeCode
from actors.harnesses.codex import Codex
from actors.harnesses.command import Command
from actors.harnesses.harness import Harness
from actors.harnesses.mini_swe_agent import MiniSweAgent
from actors.harnesses.opencode import OpenCode
from actors.harnesses.qwen_code import QwenCode
from protocol.config import AgentSettings

RELEASED: dict[str, Callable[[Path], Harness]] = {
    "mini-swe-agent": MiniSweAgent,
    "qwen-code": QwenCode,
    "opencode": OpenCode,
    "claude-code": ClaudeCode,
    "codex": Codex,
}
"""From the directory of caches."""


def make_harness(settings: AgentSettings, cache: Path) -> Harness | None:
    """The harness that is started in sandboxes; None for the built-in loops and for `python`. Raises `ConfigError`."""
    if settings.harness == "command":
        return Command(settings.command, settings.shown, settings.variables)
    make = RELEASED.get(settings.harness)
    return None if make is None else make(cache)
