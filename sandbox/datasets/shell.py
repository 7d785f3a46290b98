"""Pieces of shell that the commands of several datasets share."""

from __future__ import annotations

from collections.abc import Sequence

PYTEST = "pytest --no-header -rA --tb=no --color=no -p no:cacheprovider"
ACTIVATE = "source /opt/miniconda3/bin/activate && conda activate testbed && "
"""The environment of SWE-bench's images, and of those that are built like them."""
ACTIVATE_IF_THERE = (
    "if [ -d /opt/miniconda3/envs/testbed ]; then source /opt/miniconda3/bin/activate && conda activate testbed; fi\n"
)
_OFFLINE = "export PIP_NO_DEPS=1 PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 PIP_DISABLE_PIP_VERSION_CHECK=1"


def rebuild(commands: Sequence[str], activate: str = ACTIVATE) -> str:
    """Install steps as a set-up before the tests: pip builds what is there and fetches nothing."""
    return f"{activate}{_OFFLINE} && set -e\n" + "\n".join(commands)


def traced(script: str) -> str:
    """A script of SWE-bench as its harness runs it: its `: '>>>>> ...'` markers are printed by the shell's trace."""
    traces = any(line.startswith("set -") and "x" in line.split()[1] for line in script.split("\n") if line.strip())
    return script if traces else f"set -uxo pipefail\n{script}"
