"""Codex CLI: Responses, streamed."""

from __future__ import annotations

import json

from actors.harnesses.harness import HOME, Launch, Visit, variables
from actors.harnesses.npm_agent import ISSUE_ARGUMENT, MODULES, NODE_PIN, RUN_NODE, NpmAgent

START = (
    f"{RUN_NODE} {MODULES}/@openai/codex/bin/codex.js exec --skip-git-repo-check "
    f"--dangerously-bypass-approvals-and-sandbox {ISSUE_ARGUMENT}"
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


class Codex(NpmAgent):
    """See `Harness`."""

    name = "codex"
    pins = ("@openai/codex@0.169.0", NODE_PIN)

    def launch(self, visit: Visit) -> Launch:
        """See `Harness.launch`."""
        told = {"model": json.dumps(visit.model), "url": json.dumps(visit.openai_url), "context": visit.max_context}
        return Launch(
            argv=["bash", "-c", START],
            env=variables(visit),
            files={f"{HOME}/.codex/config.toml": SETTINGS.format(**told)},
        )
