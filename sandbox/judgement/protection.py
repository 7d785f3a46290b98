"""Which paths of a patch judgement takes: never tests, nor what decides how tests are found and run."""

from __future__ import annotations

from collections.abc import Iterable

from sandbox.patches import Change
from sandbox.tasks.runner_paths import is_test_configuration, shadows_a_tool
from sandbox.tasks.task import Task
from sandbox.tasks.test_paths import is_test_file, paths_of_diff


def allowed_changes(task: Task, changes: Iterable[Change]) -> tuple[list[Change], list[str]]:
    """The changes that are put on the clean tree, and the paths of those that are not.

    On the clean tree a path that is left out has its base state. Left out are test files, test configuration, what the
    task hides from the agent, modules in the place of a test tool or of the standard library, and anything in the place
    of a directory that holds them. A source file that looks like a test file is taken if the task's own gold patch
    changes it.
    """
    hidden = set(task.test_files) | paths_of_diff(task.test_patch) | set(task.removed)
    gold = {path for path in paths_of_diff(task.gold_patch) if not is_test_configuration(path)} - hidden
    known = gold | set(task.files or ())
    taken: list[Change] = []
    ignored: list[str] = []
    for change in changes:
        path = change.path
        blocks = change.kind != "deleted" and (
            any(other.startswith(f"{path}/") for other in hidden) or is_test_file(f"{path}/x")
        )
        planted = path in hidden or any(path.startswith(f"{removed}/") for removed in task.removed)
        keep = not planted and not blocks and not is_test_configuration(path)
        keep = keep and not shadows_a_tool(path, task.tests.import_paths, known)
        keep = keep and (path in gold or not is_test_file(path))
        if keep:
            taken.append(change)
        else:
            ignored.append(path)
    return taken, ignored
