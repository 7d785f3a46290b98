"""opencode: chat completions, streamed; a program of its own, without Node."""

from __future__ import annotations

import json
from pathlib import Path

from actors.harnesses.harness import HOME, ISSUE, Launch, Visit, variables
from actors.harnesses.install import npm_packages

PINS = ["opencode-ai@1.18.33"]
INSIDE = "/opt/longhaul-agents/opencode"
START = f'exec {INSIDE}/node_modules/opencode-ai/bin/opencode.exe run "$(cat "{ISSUE}")"'


class OpenCode:
    """See `Harness`."""

    name = "opencode"
    needs_tools = True

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def install(self) -> dict[str, str]:
        """See `Harness.install`."""
        scripts = [["opencode-ai", "postinstall.mjs"]]  # puts the program for this machine in its place
        return {str(npm_packages(self._cache, self.name, PINS, scripts)): INSIDE}

    def launch(self, visit: Visit) -> Launch:
        """See `Harness.launch`."""
        limit = {"context": visit.max_context, "output": visit.max_context}
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": visit.openai_url, "apiKey": visit.key},
            "models": {visit.model: {"limit": limit}},
        }
        settings = {
            "provider": {"longhaul": provider},
            "model": f"longhaul/{visit.model}",
            "autoupdate": False,
            "share": "disabled",
            "permission": {"edit": "allow", "bash": "allow", "webfetch": "deny"},
        }
        return Launch(
            argv=["bash", "-c", START],
            env=variables(visit) | {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"},
            files={f"{HOME}/.config/opencode/opencode.json": json.dumps(settings)},
        )
