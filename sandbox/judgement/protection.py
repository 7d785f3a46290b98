"""Which paths of a patch judgement takes: never tests, nor what decides how tests are found and run."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from sandbox.patches import Change
from sandbox.tasks import Task

_TEST_CONFIGURATION = frozenset(
    (
        *("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg"),
        *("pyproject.toml", "noxfile.py", ".coveragerc", "runtests.py", "sitecustomize.py", "usercustomize.py"),
    )
)
_TEST_MODULE = re.compile(r"(test_[^/]*|[^/]*_tests?|tests?)\.py")
_TEST_DIRECTORY = re.compile(r"(^|.*/)tests/|^test/|^testing/")
_ENVIRONMENT = re.compile(r"(^|.*/)(\.venv|venv|\.tox|site-packages)/")
_DIFF_PATH = re.compile(r"^(?:---|\+\+\+) [ab]/(.*?)(?:\t.*)?$", re.MULTILINE)


def is_test_configuration(path: str) -> bool:
    """Whether a file decides how tests are found and run, or is code that Python runs unasked."""
    name = posixpath.basename(path)
    return name in _TEST_CONFIGURATION or name.endswith(".pth") or bool(_ENVIRONMENT.match(path))


def is_test_file(path: str) -> bool:
    """Whether a path belongs to a test suite, by the conventions of Python projects."""
    return is_test_module(path) or bool(_TEST_DIRECTORY.match(path))


def is_test_module(path: str) -> bool:
    """Whether pytest would look for tests in a file, by its name."""
    return bool(_TEST_MODULE.fullmatch(posixpath.basename(path)))


def paths_of_diff(diff: str) -> set[str]:
    """Paths that a diff names on either side."""
    return set(_DIFF_PATH.findall(diff))


def allowed_changes(task: Task, changes: Iterable[Change]) -> tuple[list[Change], list[str]]:
    """The changes that are put on the clean tree, and the paths of those that are not.

    On the clean tree a path that is left out has its base state. Left out are test files, test configuration, what the
    task hides from the agent, and anything in the place of a directory that holds them. A source file that looks like
    a test file is taken if the task's own gold patch changes it.
    """
    hidden = set(task.test_files) | paths_of_diff(task.test_patch) | set(task.removed)
    gold = {path for path in paths_of_diff(task.gold_patch) if not is_test_configuration(path)} - hidden
    taken: list[Change] = []
    ignored: list[str] = []
    for change in changes:
        path = change.path
        blocks = change.kind != "deleted" and (
            any(other.startswith(f"{path}/") for other in hidden) or is_test_file(f"{path}/x")
        )
        planted = path in hidden or any(path.startswith(f"{removed}/") for removed in task.removed)
        keep = not planted and not blocks and not is_test_configuration(path)
        keep = keep and (path in gold or not is_test_file(path))
        if keep:
            taken.append(change)
        else:
            ignored.append(path)
    return taken, ignored
