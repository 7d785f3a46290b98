"""Tasks from two releases of a package: the older source, the newer tests, their difference as the gold patch."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from msgspec.structs import replace

from protocol.errors import TaskError
from sandbox.curation.survey import Package, Workshop, look, read_texts
from sandbox.diffs import git_diff
from sandbox.patches import Change, state_of
from sandbox.tasks.task import Task, TestSpec, check_task

_CHANGELOG = re.compile(r"(change|history|news|release|version)[^/]*\.(md|rst|txt)", re.IGNORECASE)
_MAX_ISSUE_CHARS = 8000


async def release_pair(shop: Workshop, old: Package, new: Package) -> Task:
    """The task of turning `old` into `new`. Raises `TaskError` when no test tells them apart."""
    tests: dict[str, str | None] = dict.fromkeys(old.layout.test_files)
    tests |= read_texts(new.tree, new.layout.test_files)
    spec = TestSpec(
        runner="pytest",
        requirements=shop.requirements,
        import_paths=old.layout.import_paths,
        modules=new.layout.test_modules,
    )
    task = Task(
        task_id=f"release/{old.requirement.replace('==', '-')}-to-{new.requirement.partition('==')[2]}",
        source="release",
        repository=old.name,
        issue=issue_of(old, new),
        fail_to_pass=(),
        sdist=old.requirement,
        sdist_sha256=old.sdist_sha256,
        test_files=tests,
        tests=spec,
    )
    pairs = source_changes(old, new)
    changes = [after or Change(path=path, kind="deleted") for path, (_, after) in pairs.items()]
    # the older source may end the run half-way; flaky tests are for validation to find
    before, after = (await look(shop, task, [])).passed, (await look(shop, task, changes)).passed
    fail_to_pass = sorted(test for test, outcome in after.items() if before.get(test) != outcome)
    pass_to_pass = sorted(after.keys() - set(fail_to_pass))
    if not fail_to_pass:
        raise TaskError(f"{task.task_id}: no test of the newer release fails on the older source", kind="no_f2p")
    return check_task(
        replace(
            task,
            fail_to_pass=tuple(fail_to_pass),
            pass_to_pass=tuple(pass_to_pass),
            tests=replace(spec, expected={test: outcome for test, outcome in after.items() if outcome != "passed"}),
            gold_patch=git_diff(pairs.values()),
        )
    )


def source_changes(old: Package, new: Package) -> dict[str, tuple[Change | None, Change | None]]:
    """(before, after) of every source file that differs between two releases, by path."""
    pairs = {}
    for path in sorted({*old.layout.source, *new.layout.source}):
        before = state_of(old.tree, path) if path in old.layout.source else None
        after = state_of(new.tree, path) if path in new.layout.source else None
        if before != after:
            pairs[path] = (before, after)
    return pairs


def issue_of(old: Package, new: Package) -> str:
    """What the newer release's change log says that the older one's did not; its name, if there is none."""
    added = [
        line[2:]
        for path in _changelogs(new.tree)
        for line in difflib.ndiff(_lines(old.tree / path), _lines(new.tree / path))
        if line.startswith("+ ")
    ]
    told = "".join(added).strip()[:_MAX_ISSUE_CHARS]
    head = f"Bring {old.name} from {old.requirement.partition('==')[2]} to {new.requirement.partition('==')[2]}."
    return f"{head}\n\n{told}\n" if told else f"{head}\n"


def _changelogs(tree: Path) -> list[Path]:
    paths = [p.relative_to(tree) for p in tree.rglob("*") if _CHANGELOG.fullmatch(p.name) and p.is_file()]
    return sorted(paths, key=lambda p: (len(p.parts), str(p)))[:2]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []
