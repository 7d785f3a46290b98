"""What agents from npm share: pinned packages in one directory that sandboxes show, and the issue as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors.harnesses.harness import ASKED
from actors.harnesses.install import NODE, npm_packages

NODE_PIN = f"{NODE}@22.23.3"
INSIDE = "/opt/longhaul-agent"  # where sandboxes show the packages
MODULES = f"{INSIDE}/node_modules"
RUN_NODE = f"exec {MODULES}/{NODE}/bin/node"
ISSUE_ARGUMENT = f'"$(cat "{ASKED}")"'


class NpmAgent:
    """See `Harness`; what remains is `launch`.

    Attributes:
        pins: packages, each `name@version`.
        scripts: programs of the packages that are run once (see `npm_packages`).
    """

    name: str
    needs_tools = True
    pins: Sequence[str]
    scripts: Sequence[Sequence[str]] = ()

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def install(self) -> dict[str, str]:
        """See `Harness.install`."""
        return {str(npm_packages(self._cache, self.name, self.pins, self.scripts)): INSIDE}
