"""opencode: chat completions, streamed; a program of its own, without Node."""

from __future__ import annotations

import json

from actors.harnesses.harness import HOME, Launch, Visit, variables
from actors.harnesses.npm_agent import ISSUE_ARGUMENT, MODULES, NpmAgent

START = f"exec {MODULES}/opencode-ai/bin/opencode.exe run {ISSUE_ARGUMENT}"


class OpenCode(NpmAgent):
    """See `Harness`."""

    name = "opencode"
    pins = ("opencode-ai@1.18.33",)
    scripts = (("opencode-ai", "postinstall.mjs"),)  # puts the program for this machine in its place

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
