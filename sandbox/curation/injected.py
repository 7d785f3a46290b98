"""Tasks from one released package: a fault in one function, kept when some of the package's own tests notice it."""

from __future__ import annotations

import ast
import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Mapping

from msgspec.structs import replace

from protocol.errors import LonghaulError, TaskError
from sandbox.curation.faults import Fault, find_faults, inject
from sandbox.curation.survey import Package, Seen, Workshop, look
from sandbox.diffs import git_diff
from sandbox.patches import Change
from sandbox.tasks.task import Task, TestSpec, check_task

log = logging.getLogger(__name__)

_MAX_FAILING = 25
"""A fault that breaks more tests than this is no puzzle."""
_MIN_DEADLINE_S = 5.0
_TRIES_PER_TASK = 6
_FAILURE = re.compile(r"^\S*?:\d+: (\w*(?:Error|Exception|Exit)\b.*)$", re.MULTILINE)


async def inject_faults(shop: Workshop, package: Package, count: int, seed: int) -> AsyncIterator[Task]:
    """Up to `count` tasks of `package`, one a function as far as they reach.

    Raises `TaskError` when the package's own tests do not pass here.
    """
    started = time.monotonic()
    first = await look(shop, package.base, [])
    deadline_s = max(_MIN_DEADLINE_S, 3 * (time.monotonic() - started))
    second = await look(shop, package.base, [])
    steady = {test: outcome for test, outcome in first.passed.items() if second.passed.get(test) == outcome}
    if not steady:
        raise TaskError(f"{package.requirement}: none of its tests pass here: {first.log[-500:]}", kind="tests")
    flaky = tuple(sorted((first.passed.keys() | second.passed.keys()) - steady.keys()))

    candidates = iter(_draw_candidates(package, random.Random(f"{package.requirement} {seed}")))
    num_tries, num_made = 0, 0
    while num_made < count and num_tries < count * _TRIES_PER_TASK:
        wave = [c for c, _ in zip(candidates, range(min(shop.num_jobs, count - num_made)), strict=False)]
        if not wave:
            return
        num_tries += len(wave)
        for task in await asyncio.gather(*(_try(shop, package, *c, steady, flaky, deadline_s) for c in wave)):
            if task is not None:
                num_made += 1
                yield task


def _draw_candidates(package: Package, r: random.Random) -> list[tuple[str, str, Fault]]:
    """(path, text, fault), shuffled; a second fault of a function comes after the first of every other."""
    rounds: list[tuple[int, float, str, str, Fault]] = []
    for path in package.layout.source:
        try:
            text = (package.tree / path).read_text(encoding="utf-8")
            faults = find_faults(text)
        except (UnicodeDecodeError, SyntaxError):
            continue
        r.shuffle(faults)
        uses: dict[str, int] = {}
        for fault in faults:
            uses[fault.function] = uses.get(fault.function, 0) + 1
            rounds.append((uses[fault.function], r.random(), path, text, fault))
    return [(path, text, fault) for _, _, path, text, fault in sorted(rounds, key=lambda entry: entry[:2])]


async def _try(
    shop: Workshop,
    package: Package,
    path: str,
    text: str,
    fault: Fault,
    steady: Mapping[str, str],
    flaky: tuple[str, ...],
    deadline_s: float,
) -> Task | None:
    """The task of one fault, or None when the tests do not notice it, notice little else, or do not come to an end."""
    concerned = _only_concerned(package.base, path)
    try:
        broken = inject(text, fault)
        change = Change(path=path, kind="file", content=broken.encode())
        seen = await look(shop, concerned, [change], deadline_s)
    except SyntaxError:
        return None
    except LonghaulError as error:
        log.warning("%s: %s in %s could not be tried: %s", package.requirement, fault.kind, path, error)
        return None
    steady = {test: outcome for test, outcome in steady.items() if test.partition("::")[0] in concerned.test_files}
    failing = sorted(test for test, outcome in steady.items() if seen.passed.get(test) != outcome)
    if not seen.finished or not 0 < len(failing) <= _MAX_FAILING:
        return None
    return _task(package, path, text, broken, fault, failing, steady, flaky, seen)


def _only_concerned(base: Task, path: str) -> Task:
    """`base` with only those test modules that name the module at `path`; all of them where none does."""
    stem = path.removesuffix("/__init__.py").removesuffix(".py").rpartition("/")[2]
    word = re.compile(rf"\b{re.escape(stem)}\b")
    files = {
        p: text for p, text in base.test_files.items() if text and (word.search(text) or p.endswith(f"_{stem}.py"))
    }
    return replace(base, test_files=files, tests=replace(base.tests, modules=tuple(files))) if files else base


def _task(
    package: Package,
    path: str,
    text: str,
    broken: str,
    fault: Fault,
    failing: list[str],
    steady: Mapping[str, str],
    flaky: tuple[str, ...],
    seen: Seen,
) -> Task:
    modules = tuple(sorted({test.partition("::")[0] for test in failing}))
    good, bad = (Change(path=path, kind="file", content=t.encode()) for t in (text, broken))
    named = {test: outcome for test, outcome in steady.items() if test.partition("::")[0] in modules}
    tests = package.base.tests
    kind = fault.kind.replace(" ", "-")
    return check_task(
        Task(
            task_id=f"injected/{package.requirement.replace('==', '-')}/{fault.function}-{fault.start}-{kind}",
            source="injected",
            repository=package.name,
            issue=_issue(path, text, fault, seen),
            fail_to_pass=tuple(failing),
            pass_to_pass=tuple(sorted(named.keys() - set(failing))),
            sdist=package.requirement,
            sdist_sha256=package.sdist_sha256,
            removed=modules,
            setup_patch=git_diff([(good, bad)]),
            gold_patch=git_diff([(bad, good)]),
            test_files={module: package.base.test_files[module] for module in modules},
            tests=TestSpec(
                runner="pytest",
                requirements=tests.requirements,
                import_paths=tests.import_paths,
                expected={test: outcome for test, outcome in named.items() if outcome != "passed"},
            ),
            flaky=flaky,
            metadata={"fault": fault.kind, "function": fault.function, "path": path},
        )
    )


def _issue(path: str, text: str, fault: Fault, seen: Seen) -> str:
    module = path.removeprefix("src/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    lines = [f"`{fault.function}` in `{module}` does not do what it should."]
    if documented := _first_line_of_docstring(text, fault.function):
        lines.append(f"It is documented as: {documented}")
    if symptom := _FAILURE.search(seen.log):
        lines.append(f"A use of it that worked before now ends with\n\n    {symptom.group(1)[:300]}")
    return "\n\n".join(lines) + "\n"


def _first_line_of_docstring(text: str, function: str) -> str:
    node: ast.AST = ast.parse(text)
    for name in function.split("."):
        named = (n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == name)
        node = next(named, node)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    return (ast.get_docstring(node) or "").strip().partition("\n")[0]
