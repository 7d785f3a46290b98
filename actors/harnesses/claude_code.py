"""Claude Code: Anthropic Messages, streamed; a program of its own, without Node."""

from __future__ import annotations

from pathlib import Path

from actors.harnesses.harness import ISSUE, Launch, Visit, variables
from actors.harnesses.install import npm_packages

PINS = ["@anthropic-ai/claude-code@2.1.197"]
INSIDE = "/opt/longhaul-agents/claude-code"
START = (
    f"exec {INSIDE}/node_modules/@anthropic-ai/claude-code/bin/claude.exe "
    f'-p "$(cat "{ISSUE}")" --model "$ANTHROPIC_MODEL" --dangerously-skip-permissions'
)


class ClaudeCode:
    """See `Harness`."""

    name = "claude-code"
    needs_tools = True

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def install(self) -> dict[str, str]:
        """See `Harness.install`."""
        scripts = [["@anthropic-ai/claude-code", "install.cjs"]]  # puts the program for this machine in its place
        return {str(npm_packages(self._cache, self.name, PINS, scripts)): INSIDE}

    def launch(self, visit: Visit) -> Launch:
        """See `Harness.launch`. What it does besides its work (updates, reports) is turned off."""
        own = {
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",
            "ANTHROPIC_SMALL_FAST_MODEL": visit.model,
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": visit.model,
        }
        return Launch(argv=["bash", "-c", START], env=variables(visit) | own)
