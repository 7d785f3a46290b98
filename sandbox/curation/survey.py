"""Runs of a package's own tests, to learn which tests tell a good tree from a broken one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from protocol.errors import TaskError
from sandbox.base import Backend, Limits
from sandbox.curation.layout import Layout, layout_of
from sandbox.judgement.reports import run_hidden_tests
from sandbox.judgement.verdicts import Report
from sandbox.patches import Change
from sandbox.tasks.packages import fetch_sdist, file_sha256
from sandbox.tasks.sources import materialise, sandbox_spec
from sandbox.tasks.task import Task, TestSpec

_PASSING = frozenset({"passed", "xfailed", "xpassed"})
LIMITS = Limits(memory_mib=1024, max_processes=256, cpus=1.0, disk_mib=512)
"""Of the sandboxes in which tasks are made and validated."""


class Workshop(Struct, frozen=True, kw_only=True):
    """What making tasks needs."""

    backend: Backend
    cache_dir: Path
    run: str
    requirements: tuple[str, ...]  # of the tests: pytest and what the package's tests import
    timeout_s: float = 120.0
    num_jobs: int = 2


class Package(Struct, frozen=True, kw_only=True):
    """An unpacked release and what its own tests say of it."""

    requirement: str
    sdist_sha256: str
    tree: Path
    layout: Layout
    base: Task  # runs all its test modules; judges nothing

    @property
    def name(self) -> str:
        """The project's name."""
        return self.requirement.partition("==")[0]


class Seen(Struct, frozen=True, kw_only=True):
    """Outcomes of one run, and what it printed."""

    outcomes: Mapping[str, str]
    finished: bool  # False: the tests ended their own process, ran out of memory or of time
    log: str

    @property
    def passed(self) -> dict[str, str]:
        """Tests that passed, or failed as expected, with that outcome."""
        return {test: outcome for test, outcome in self.outcomes.items() if outcome in _PASSING}


async def open_package(shop: Workshop, requirement: str) -> Package:
    """Fetch and unpack a pinned release. Raises `TaskError` when it carries no tests."""
    return await asyncio.to_thread(_open_package, shop, requirement)


def _open_package(shop: Workshop, requirement: str) -> Package:
    sha256 = file_sha256(fetch_sdist(requirement, shop.cache_dir))
    bare = _task(shop, requirement, sha256)
    tree = materialise(bare, shop.cache_dir)
    assert tree is not None
    layout = layout_of(tree)
    if not layout.test_modules or not layout.source:
        raise TaskError(f"{requirement}: its source distribution carries no tests", kind="no_tests")
    base = _task(shop, requirement, sha256, layout, read_texts(tree, layout.test_modules))
    return Package(requirement=requirement, sdist_sha256=sha256, tree=tree, layout=layout, base=base)


def _task(
    shop: Workshop, requirement: str, sha256: str, layout: Layout | None = None, tests: Mapping[str, str] | None = None
) -> Task:
    return Task(
        task_id=f"survey/{requirement.replace('==', '-')}",
        source="survey",
        repository=requirement.partition("==")[0],
        issue="",
        fail_to_pass=(),
        sdist=requirement,
        sdist_sha256=sha256,
        test_files=dict(tests or {}),
        tests=TestSpec(
            runner="pytest",
            requirements=shop.requirements,
            import_paths=layout.import_paths if layout else (".",),
            modules=tuple(tests or ()),
        ),
    )


def read_texts(tree: Path, paths: tuple[str, ...]) -> dict[str, str]:
    """Text files by path; what is not UTF-8 text is left out."""
    texts: dict[str, str] = {}
    for path in paths:
        try:
            texts[path] = (tree / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return texts


async def look(shop: Workshop, task: Task, changes: list[Change], timeout_s: float | None = None) -> Seen:
    """Run the test modules of `task` on its tree with `changes`. Raises `SandboxError`, `GradingError`."""
    spec = await asyncio.to_thread(sandbox_spec, task, shop.run, task.task_id, LIMITS, shop.cache_dir)
    async with await shop.backend.create(spec) as sandbox:
        seen = await run_hidden_tests(sandbox, task, changes, timeout_s or shop.timeout_s)
    finished = isinstance(seen.report, Report) and seen.report.finished
    return Seen(outcomes=seen.outcomes, finished=finished, log=seen.log)
