"""Pieces of shell that the commands of several datasets share."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from sandbox.datasets.fields import Record, refusal

PYTEST = "pytest --no-header -rA --tb=no --color=no -p no:cacheprovider"
ACTIVATE = "source /opt/miniconda3/bin/activate && conda activate testbed && "
"""The environment of SWE-bench's images, and of those that are built like them."""
ACTIVATE_IF_THERE = (
    "if [ -d /opt/miniconda3/envs/testbed ]; then source /opt/miniconda3/bin/activate && conda activate testbed; fi\n"
)
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OFFLINE = "export PIP_NO_DEPS=1 PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 PIP_DISABLE_PIP_VERSION_CHECK=1"


def rebuild(commands: Sequence[str], activate: str = ACTIVATE) -> str:
    """Install steps as a set-up before the tests: pip builds what is there and fetches nothing."""
    return f"{activate}{_OFFLINE} && set -e\n" + "\n".join(commands)


def exports(record: Record, field: str, variables: object, of: str = "") -> str:
    """Lines that set the variables which a record asks for, by name or as `NAME=value`; empty where it asks for none.

    Parquet editions have the variables of all other records as null. Raises `TaskError`.
    """
    if not variables:
        return ""
    if isinstance(variables, list) and all(isinstance(item, str) and "=" in item for item in variables):
        variables = dict(item.split("=", 1) for item in variables)
    if not isinstance(variables, dict):
        raise refusal(record, field, f"expected values by names of variables, got {type(variables).__name__}", of)
    lines = []
    for name, value in variables.items():
        if value is None:
            continue
        if not _VARIABLE.fullmatch(name) or not isinstance(value, str):
            raise refusal(record, field, f"expected texts by names of variables, got {name!r}", of)
        lines.append(f"export {name}={shlex.quote(value)}\n")
    return "".join(lines)


def traced(script: str) -> str:
    """A script of SWE-bench as its harness runs it: its `: '>>>>> ...'` markers are printed by the shell's trace."""
    traces = any(line.startswith("set -") and "x" in line.split()[1] for line in script.split("\n") if line.strip())
    return script if traces else f"set -uxo pipefail\n{script}"
