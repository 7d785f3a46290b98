"""Codex CLI: Responses, streamed."""

from __future__ import annotations

import json
from pathlib import Path

from actors.harnesses.harness import HOME, ISSUE, Launch, Visit, variables
from actors.harnesses.install import NODE, npm_packages

PINS = ["@openai/codex@0.169.0", f"{NODE}@22.23.3"]
INSIDE = "/opt/longhaul-agents/codex"
MODULES = f"{INSIDE}/node_modules"
START = (
    f"exec {MODULES}/{NODE}/bin/node {MODULES}/@openai/codex/bin/codex.js exec --skip-git-repo-check "
    f'--dangerously-bypass-approvals-and-sandbox "$(cat "{ISSUE}")"'
)
# Its own sandbox would need namespaces that ours does not give; a search of the web has no web here.
SETTINGS = """\
model = {model}
model_provider = "longhaul"
model_context_window = {context}
web_search = "disabled"
check_for_update_on_startup = false

[model_providers.longhaul]
name = "longhaul"
base_url = {url}
env_key = "OPENAI_API_KEY"
wire_api = "responses"

[analytics]
enabled = false
"""


class Codex:
    """See `Harness`."""

    name = "codex"
    needs_tools = True

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def install(self) -> dict[str, str]:
        """See `Harness.install`."""
        return {str(npm_packages(self._cache, self.name, PINS)): INSIDE}

    def launch(self, visit: Visit) -> Launch:
        """See `Harness.launch`."""
        told = {"model": json.dumps(visit.model), "url": json.dumps(visit.openai_url), "context": visit.max_context}
        return Launch(
            argv=["bash", "-c", START],
            env=variables(visit),
            files={f"{HOME}/.codex/config.toml": SETTINGS.format(**told)},
        )
