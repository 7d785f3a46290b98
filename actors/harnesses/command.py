"""Any program: it finds the issue in the file `$LONGHAUL_ISSUE`, and the model where its SDK looks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from actors.harnesses.harness import Launch, Visit, variables
from protocol.errors import ConfigError


class Command:
    """See `Harness`.

    Args:
        line: a shell line, run in the work directory.
        binds: host path -> path inside, read-only: where the program's own files are.
        env: variables besides.
    """

    name = "command"
    needs_tools = False

    def __init__(self, line: str, binds: Mapping[str, str], env: Mapping[str, str]) -> None:
        if not line.strip():
            raise ConfigError("agent.harness is command: say in agent.command what to run", kind="agent")
        self._line, self._binds, self._env = line, dict(binds), dict(env)

    def install(self) -> dict[str, str]:
        """See `Harness.install`: nothing to fetch."""
        for outside in self._binds:
            if not Path(outside).exists():
                raise ConfigError(f"agent.binds: {outside} does not exist", kind="agent")
        return self._binds

    def launch(self, visit: Visit) -> Launch:
        """See `Harness.launch`."""
        return Launch(argv=["bash", "-c", self._line], env=variables(visit) | self._env)
