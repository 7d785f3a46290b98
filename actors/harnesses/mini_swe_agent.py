"""mini-swe-agent, unmodified, with its own prompts and configuration, inside the sandbox as its local environment."""

from __future__ import annotations

from pathlib import Path

from actors.harnesses.harness import HOME, ISSUE, ROOM, Launch, Visit, variables
from actors.harnesses.install import python_packages

INSIDE = "/opt/longhaul-agent"
# Isolated (-I), so that neither the repository's modules nor its environment reach the agent, nor its own the commands.
PROGRAM = f"""
import sys
sys.path.insert(0, {f"{INSIDE}/site"!r})
sys.argv = ["mini", *sys.argv[1:], "--task", open({ISSUE!r}, encoding="utf-8").read()]
from minisweagent.run.mini import app
app()
"""


class MiniSweAgent:
    """See `Harness`."""

    name = "mini-swe-agent"
    needs_tools = True
    pins = ("mini-swe-agent==2.4.6",)

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def install(self) -> dict[str, str]:
        """See `Harness.install`."""
        return {str(python_packages(self._cache, self.name, self.pins)): INSIDE}

    def launch(self, visit: Visit) -> Launch:
        """See `Harness.launch`. Its limits on steps and cost are off: the episode has its own."""
        own = {
            "MSWEA_CONFIGURED": "true",
            "MSWEA_COST_TRACKING": "ignore_errors",
            "MSWEA_GLOBAL_CONFIG_DIR": f"{HOME}/mini",
            "MSWEA_SILENT_STARTUP": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        flags = ["--yolo", "--exit-immediately", "--cost-limit", "0", "--output", f"{ROOM}/mini.traj.json"]
        return Launch(
            argv=[f"{INSIDE}/bin/python3", "-I", "-c", PROGRAM, "--model", f"openai/{visit.model}", *flags],
            env=variables(visit) | own,
        )
