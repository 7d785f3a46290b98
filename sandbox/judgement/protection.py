"""Which paths of a patch judgement takes: never tests, nor what decides how tests are found and run."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sandbox.patches import Change
from sandbox.tasks.runner_paths import is_test_configuration, shadows_a_tool
from sandbox.tasks.task import Task
from sandbox.tasks.test_paths import folder_of_tests, helps_tests, is_test_file, paths_of_diff


def allowed_changes(task: Task, changes: Iterable[Change]) -> tuple[list[Change], list[str]]:
    """The changes that are put on the clean tree, and the paths of those that are not.

    On the clean tree a path that is left out has its base state. Left out are test files, test configuration, what the
    task hides from the agent, modules in the place of a test tool or of the standard library, and anything in the place
    of a directory that holds them. A source file that looks like a test file is taken if the task's own gold patch
    changes it; what looks like a helper of tests, or their data, if it changes something in the same folder of such.
    """
    hidden = set(task.test_files) | paths_of_diff(task.test_patch) | set(task.removed)
    gold = {path for path in paths_of_diff(task.gold_patch) if not is_test_configuration(path)} - hidden
    known = gold | set(task.files or ())
    taken: list[Change] = []
    ignored: list[str] = []
    for change in changes:
        path = change.path
        blocks = change.kind != "deleted" and (
            any(other.startswith(f"{path}/") for other in hidden)
            or is_test_file(f"{path}/x")
            or _helps_unasked(f"{path}/x", gold)
        )
        planted = path in hidden or any(path.startswith(f"{removed}/") for removed in task.removed)
        keep = not planted and not blocks and not is_test_configuration(path)
        keep = keep and not shadows_a_tool(path, task.tests.import_paths, known)
        keep = keep and (path in gold or not (is_test_file(path) or _helps_unasked(path, gold)))
        if keep:
            taken.append(change)
        else:
            ignored.append(path)
    return taken, ignored


def _helps_unasked(path: str, gold: Collection[str]) -> bool:
    """Whether tests ask by a file, and the task's solution has nothing to do with it.

    A task without a gold patch does not say what its solution is made of.
    """
    folder = folder_of_tests(path)
    is_of_gold = bool(folder) and any(other.startswith(f"{folder}/") for other in gold)
    return bool(gold) and helps_tests(path) and not is_of_gold
