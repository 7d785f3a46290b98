"""`validate` over tasks of which every twentieth is broken on purpose: which ones does it find, which does it lose?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from sandbox.base import Backend
from sandbox.curation.survey import Workshop
from sandbox.curation.validate import Rules, validate
from sandbox.tasks.task import Task

SHARE_BROKEN = 0.05
_NO_FIT = "diff --git a/gone.py b/gone.py\n--- a/gone.py\n+++ b/gone.py\n@@ -1 +1 @@\n-a = 1\n+a = 2\n"

BREAKS: tuple[Callable[[Task], Task], ...] = (
    lambda task: replace(task, gold_patch=_NO_FIT),
    lambda task: replace(task, fail_to_pass=(*task.fail_to_pass, f"{_module(task)}::test_that_is_not_there")),
    lambda task: replace(task, setup_patch=_NO_FIT),
    lambda task: replace(task, test_files=dict.fromkeys(task.test_files, "def test_a(:\n")),
    lambda task: (
        replace(task, fail_to_pass=task.pass_to_pass[:1], pass_to_pass=task.pass_to_pass[1:])
        if task.pass_to_pass
        else replace(task, gold_patch=_NO_FIT)
    ),
    lambda task: replace(task, gold_patch=""),
    lambda task: (
        replace(task, sdist_sha256="0" * 64)
        if task.sdist
        else replace(task, tests=replace(task.tests, import_paths=("no/such/place",)))
    ),
    lambda task: replace(task, gold_patch=task.setup_patch or _inverse(task.gold_patch)),
)
"""A gold patch and a set-up patch that do not fit, a test that is not there, tests that cannot be read, a test that
passes before the change, no gold patch, a release of other content or a place to import from that is not there, a gold
patch the wrong way round."""


async def validation(backend: Backend, folder: Path, tasks: Sequence[Task]) -> dict[str, int]:
    """Validate sound tasks of which some are broken first: how many were `checked` (with a verdict or a reason), how
    many of the `broken` ones were `found`, and `named` with why, and how many sound ones were `refused`."""
    every = round(1 / SHARE_BROKEN)
    broken = {task.task_id: number // every for number, task in enumerate(tasks) if number % every == 0}
    given = [BREAKS[broken[t.task_id] % len(BREAKS)](t) if t.task_id in broken else t for t in tasks]
    shop = Workshop(
        backend=backend, cache_dir=folder / "cache", run="data-validation", requirements=(), timeout_s=120.0, num_jobs=2
    )
    checks = {check.task_id: check async for check in validate(shop, given, Rules(num_runs=1), folder / "checks.jsonl")}
    known = {name for name, check in checks.items() if not check.unchecked}
    return {
        "checked": len(checks),
        "broken": len(broken),
        "found": sum(not checks[name].kept for name in broken if name in checks),
        "named": sum(bool(checks[name].reasons or checks[name].unchecked) for name in broken if name in checks),
        "refused": sum(not check.kept for name, check in checks.items() if name not in broken and name in known),
    }


def _inverse(patch: str) -> str:
    """Added lines for removed ones, within each hunk of one line against one."""
    turned = {"+": "-", "-": "+"}
    lines = patch.splitlines(keepends=True)
    is_change = [line[:1] in turned and not line.startswith(("+++", "---")) for line in lines]
    return "".join(turned[x[0]] + x[1:] if c else x for x, c in zip(lines, is_change, strict=True))


def _module(task: Task) -> str:
    return task.fail_to_pass[0].partition("::")[0]
