"""Qwen Code: chat completions, streamed."""

from __future__ import annotations

import json

from actors.harnesses.harness import HOME, Launch, Visit, variables
from actors.harnesses.npm_agent import ISSUE_ARGUMENT, MODULES, NODE_PIN, RUN_NODE, NpmAgent

START = f"{RUN_NODE} {MODULES}/@qwen-code/qwen-code/cli.js --auth-type openai -y -p {ISSUE_ARGUMENT}"


class QwenCode(NpmAgent):
    """See `Harness`."""

    name = "qwen-code"
    pins = ("@qwen-code/qwen-code@0.15.10", NODE_PIN)

    def launch(self, visit: Visit) -> Launch:
        """See `Harness.launch`."""
        settings = {"privacy": {"usageStatisticsEnabled": False}, "general": {"disableAutoUpdate": True}}
        return Launch(
            argv=["bash", "-c", START],
            env=variables(visit) | {"QWEN_TELEMETRY_ENABLED": "0"},
            files={f"{HOME}/.qwen/settings.json": json.dumps(settings)},
        )
