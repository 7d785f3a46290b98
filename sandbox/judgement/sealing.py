"""What judges is read-only while code under test runs: hidden tests, scripts and readers, interpreter and test tools.

Defence in depth for tasks with an image, where that code may be root: a later process of the same run finds what was
there. It does not replace what vouches for an outcome (canaries, twins, `control.py`).
"""

from __future__ import annotations

import re

from sandbox.base import Sandbox
from sandbox.tasks.packages import PYTHON
from sandbox.tasks.task import Task
from sandbox.tasks.test_paths import is_test_module, paths_of_diff

_WHERE = "import sys; print(sys.prefix, sys.base_prefix)"
_LEAST_DEPTH = 2  # /root/.venv, not /root
_TIMEOUT_S = 60.0
PROGRAMS = ("/usr", "/opt", "/bin", "/sbin", "/lib", "/lib64")
_INSTALLS = re.compile(
    r"\b(install|build|make|maturin|sync|compile|npm|npx|yarn|pnpm|cargo|go|mvn|gradle\w*|bundle|composer)\b|setup\.py"
)


async def seal_what_judges(sandbox: Sandbox, task: Task) -> None:
    """Right before the tests run, everything being in place. Raises `SandboxError`."""
    if task.image is None:  # nobody is root there, and programs are the host's, read-only
        return
    programs = programs_of(task)
    if programs:
        found = await sandbox.exec([PYTHON, "-I", "-S", "-B", "-c", _WHERE], timeout=_TIMEOUT_S)
        programs += interpreters(task, found.text if found.exit_code == 0 else "")
    await sandbox.seal([*programs, *_hidden_files(task)])


def interpreters(task: Task, said: str) -> list[str]:
    """Where an interpreter is besides, by what it said; nothing so wide that tests would have to write there."""
    places = {place for place in said.split() if place.startswith("/") and place.count("/") >= _LEAST_DEPTH}
    inside = [place for place in sorted(places) if not f"{task.workdir}/".startswith(f"{place}/")]
    return [place for place in inside if not place.startswith(tuple(f"{known}/" for known in PROGRAMS))]


def programs_of(task: Task) -> list[str]:
    """Where programs are, unless the tests' own command installs something, or the repository is there."""
    scripts = [text for path, text in task.test_files.items() if path.startswith("/") and text]
    if _INSTALLS.search("\n".join((task.tests.command, *scripts))):
        return []
    return [place for place in PROGRAMS if not f"{task.workdir}/".startswith(f"{place}/")]


def _hidden_files(task: Task) -> list[str]:
    brought = () if task.tests.applies_tests else paths_of_diff(task.test_patch)
    return sorted({*task.test_files, *filter(is_test_module, brought)})
