"""Qwen Code: chat completions, streamed."""

from __future__ import annotations

import json
from pathlib import Path

from actors.harnesses.harness import HOME, ISSUE, Launch, Visit, variables
from actors.harnesses.install import NODE, npm_packages

PINS = ["@qwen-code/qwen-code@0.15.10", f"{NODE}@22.23.3"]
INSIDE = "/opt/longhaul-agents/qwen-code"
MODULES = f"{INSIDE}/node_modules"
START = (
    f'exec {MODULES}/{NODE}/bin/node {MODULES}/@qwen-code/qwen-code/cli.js --auth-type openai -y -p "$(cat "{ISSUE}")"'
)


class QwenCode:
    """See `Harness`."""

    name = "qwen-code"
    needs_tools = True

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def install(self) -> dict[str, str]:
        """See `Harness.install`."""
        return {str(npm_packages(self._cache, self.name, PINS)): INSIDE}

    def launch(self, visit: Visit) -> Launch:
        """See `Harness.launch`."""
        settings = {"privacy": {"usageStatisticsEnabled": False}, "general": {"disableAutoUpdate": True}}
        return Launch(
            argv=["bash", "-c", START],
            env=variables(visit) | {"QWEN_TELEMETRY_ENABLED": "0"},
            files={f"{HOME}/.qwen/settings.json": json.dumps(settings)},
        )
