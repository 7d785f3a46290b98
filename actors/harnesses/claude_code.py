"""Claude Code: Anthropic Messages, streamed; a program of its own, without Node."""

from __future__ import annotations

from actors.harnesses.harness import Launch, Visit, variables
from actors.harnesses.npm_agent import ISSUE_ARGUMENT, MODULES, NpmAgent

START = (
    f"exec {MODULES}/@anthropic-ai/claude-code/bin/claude.exe "
    f'-p {ISSUE_ARGUMENT} --model "$ANTHROPIC_MODEL" --dangerously-skip-permissions'
)


class ClaudeCode(NpmAgent):
    """See `Harness`."""

    name = "claude-code"
    pins = ("@anthropic-ai/claude-code@2.1.197",)
    scripts = (("@anthropic-ai/claude-code", "install.cjs"),)  # puts the program for this machine in its place

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
