"""Whether a task can teach: the untouched repository must score 0 and the gold patch 1, every time; and the paper's
filters. Nothing here needs a model."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from protocol.errors import ConfigError, LonghaulError
from sandbox.curation.gold import gold_patch
from sandbox.curation.survey import LIMITS, Workshop
from sandbox.judgement.grading import Verdict, grade
from sandbox.patches import Patch
from sandbox.tasks.task import Task, TestSpec
from sandbox.tasks.test_paths import paths_of_diff

log = logging.getLogger(__name__)

NUM_ATTEMPTS = 2
FAILURE_KINDS = ("AttributeError", "ImportError", "ModuleNotFoundError")
"""The paper's failure kinds: tests that fail so ask for names that no issue text tells."""


class Rules(Struct, frozen=True, kw_only=True):
    """The paper's filters; None or empty: not asked for."""

    max_files: int | None = None  # changed by the gold patch (the paper: 7)
    max_lines: int | None = None  # changed by the gold patch (the paper: fewer than 500)
    drop_llm_score_at: float | None = None  # SWE-rebench's `meta.llm_score`: any score at or above (the paper: 3.0)
    failure_kinds: tuple[str, ...] = ()  # seen in the log of the untouched repository
    num_runs: int = 3  # a test that is not the same in all of them is flaky (the paper: 50)
    keep_flaky: bool = True  # if the task is valid with its flaky tests judged again (the paper: no)


PAPER = Rules(
    max_files=7, max_lines=499, drop_llm_score_at=3.0, failure_kinds=FAILURE_KINDS, num_runs=50, keep_flaky=False
)


class Check(Struct, frozen=True, kw_only=True):
    """What validation found. `reasons` is empty for a task that is kept."""

    task_id: str
    fingerprint: str  # of the task, the rules and the deadline: what changed is validated again
    reasons: tuple[str, ...] = ()
    flaky: tuple[str, ...] = ()
    tests: TestSpec | None = None  # how the task's tests must be run and read, where that had to be learned
    num_untouched_zero: int = 0
    num_gold_one: int = 0
    duration_s: float = 0.0
    unchecked: str = ""  # why nothing is known: the place failed, every time, and not the task

    @property
    def kept(self) -> bool:
        """Whether the task can be used."""
        return not self.reasons and not self.unchecked


def reasons_by_looks(task: Task, rules: Rules) -> list[str]:
    """Why the rules refuse a task, from its record alone."""
    reasons = []
    num_files = len(paths_of_diff(task.gold_patch))
    num_lines = Patch(diff=task.gold_patch).num_changed_lines
    if rules.max_files is not None and num_files > rules.max_files:
        reasons.append(f"the gold patch changes {num_files} files, more than {rules.max_files}")
    if rules.max_lines is not None and num_lines > rules.max_lines:
        reasons.append(f"the gold patch changes {num_lines} lines, more than {rules.max_lines}")
    scores = task.metadata.get("llm_score")
    for name, score in sorted(scores.items()) if isinstance(scores, dict) else ():
        if rules.drop_llm_score_at is not None and score is not None and score >= rules.drop_llm_score_at:
            reasons.append(f"llm_score.{name} is {score}")
    return reasons


def reasons_of_runs(task: Task, rules: Rules, untouched: list[Verdict], gold: list[Verdict]) -> list[str]:
    """Why a task is refused, from what its tests did."""
    reasons = []
    for number, verdict in enumerate(untouched, 1):
        if verdict.resolved:
            reasons.append(f"run {number}: the untouched repository passes")
        elif verdict.tampered:
            reasons.append(f"run {number}: the untouched repository: {verdict.reason}")
        elif turned := set(verdict.passed) & set(task.fail_to_pass):
            reasons.append(f"run {number}: {min(turned)} passes on the untouched repository")
        elif broken := set(verdict.failed) & set(task.pass_to_pass) - set(task.flaky):
            reasons.append(f"run {number}: {min(broken)} fails on the untouched repository")
    reasons += [f"run {n}: the gold patch: {v.reason}" for n, v in enumerate(gold, 1) if not v.resolved]
    log = untouched[0].log if untouched else ""
    reasons += [f"tests fail by {kind}" for kind in rules.failure_kinds if re.search(rf"\b{kind}\b", log)]
    return reasons


async def validate_task(shop: Workshop, task: Task, rules: Rules) -> Check:
    """Check one task. An infrastructure failure is raised, not held against the task; its own faults are reasons."""
    started = time.monotonic()
    check = Check(task_id=task.task_id, fingerprint=fingerprint(task, rules, shop.timeout_s))
    if reasons := reasons_by_looks(task, rules):
        return msgspec.structs.replace(check, reasons=tuple(reasons))
    try:
        gold = await gold_patch(shop.backend, task, shop.run, LIMITS, shop.cache_dir)
        untouched, solved = await _runs(shop, task, gold, rules.num_runs)
        given = task.tests
        while (tests := _learned(task, solved)) is not None:
            task = msgspec.structs.replace(task, tests=tests)
            untouched, solved = await _runs(shop, task, gold, rules.num_runs)
        flaky = _unsteady(untouched) | _unsteady(solved)
        if flaky and rules.keep_flaky:
            task = msgspec.structs.replace(task, flaky=tuple(sorted({*task.flaky, *flaky})))
            untouched, solved = await _runs(shop, task, gold, rules.num_runs)
    except LonghaulError as error:
        if error.boundary != "task":
            raise
        return msgspec.structs.replace(check, reasons=(str(error),))
    return msgspec.structs.replace(
        check,
        reasons=tuple(reasons_of_runs(task, rules, untouched, solved)),
        flaky=tuple(sorted(flaky)),
        tests=task.tests if task.tests != given else None,
        num_untouched_zero=sum(not v.resolved for v in untouched),
        num_gold_one=sum(v.resolved for v in solved),
        duration_s=time.monotonic() - started,
    )


async def validate(shop: Workshop, tasks: Iterable[Task], rules: Rules, cache: Path | None) -> AsyncIterator[Check]:
    """Check tasks, `shop.num_jobs` at a time, as they finish. What `cache` (JSONL) already holds is not run again.

    A task of which nothing came to be known in `NUM_ATTEMPTS` attempts is `unchecked`; the next call tries it again.
    Raises `ConfigError`.
    """
    known = _read_cache(cache) if cache else {}
    waiting = []
    for task in tasks:
        seen = known.get(task.task_id)
        if seen is not None and seen.fingerprint == fingerprint(task, rules, shop.timeout_s):
            yield seen
        else:
            waiting.append(task)
    room = asyncio.Semaphore(shop.num_jobs)

    async def one(task: Task) -> Check:
        unchecked = ""
        for _ in range(NUM_ATTEMPTS):
            try:
                async with room:
                    return await validate_task(shop, task, rules)
            except ConfigError:
                raise
            except LonghaulError as error:
                unchecked = str(error)
            except Exception as error:  # the others go on, whatever this one met
                log.warning("validating %s", task.task_id, exc_info=True)
                unchecked = f"{type(error).__name__}: {error}"
        return Check(task_id=task.task_id, fingerprint=fingerprint(task, rules, shop.timeout_s), unchecked=unchecked)

    running = [asyncio.create_task(one(task), name=f"validate {task.task_id}") for task in waiting]
    try:
        for done in asyncio.as_completed(running):
            check = await done
            if cache is not None and not check.unchecked:
                _append(cache, check)
            yield check
    finally:
        for job in running:
            job.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def fingerprint(task: Task, rules: Rules, timeout_s: float) -> str:
    """Digest of a task and of what it is checked by. Of the deadline, too: who finds that tests did not end in time
    calls again with more of it."""
    return hashlib.sha256(msgspec.json.encode((task, rules, timeout_s), order="deterministic")).hexdigest()[:32]


async def _runs(shop: Workshop, task: Task, gold: Patch, num_runs: int) -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts on the untouched repository and on the gold patch."""
    pairs = [(await _judge(shop, task, Patch()), await _judge(shop, task, gold)) for _ in range(num_runs)]
    return [untouched for untouched, _ in pairs], [solved for _, solved in pairs]


async def _judge(shop: Workshop, task: Task, patch: Patch) -> Verdict:
    return await grade(
        shop.backend,
        task,
        patch,
        run=shop.run,
        lease=f"validate-{task.task_id}",
        limits=LIMITS,
        cache_dir=shop.cache_dir,
        timeout_s=shop.timeout_s,
    )


def _learned(task: Task, solved: list[Verdict]) -> TestSpec | None:
    """What the runs of the gold patch teach of the tests, one thing at a time; None: nothing (more)."""
    tests = task.tests
    if tests.runner == "expected-output" or all(verdict.resolved for verdict in solved):
        return None
    if doubted := {test for verdict in solved for test in verdict.doubted} - set(tests.untwinned):
        return msgspec.structs.replace(tests, untwinned=tuple(sorted({*tests.untwinned, *doubted})))
    first, *others = [verdict.unusual for verdict in solved]
    steady = {test: outcome for test, outcome in first.items() if all(o.get(test) == outcome for o in others)}
    new = {test: outcome for test, outcome in steady.items() if tests.expected_outcome(test) != outcome}
    if new and not any(verdict.tampered for verdict in solved):
        return msgspec.structs.replace(tests, expected={**tests.expected, **new})
    if tests.runner != "log" and tests.order == "drawn":
        return msgspec.structs.replace(tests, order="file")
    named = (*task.fail_to_pass, *task.pass_to_pass)
    if len(tests.untwinned) < len(named):  # what a twin leaves behind may disturb its neighbours
        return msgspec.structs.replace(tests, untwinned=tuple(sorted(named)))
    return None


def as_checked(task: Task, check: Check) -> Task:
    """`task` with what its validation has learned of it."""
    flaky = tuple(sorted({*task.flaky, *check.flaky}))
    return msgspec.structs.replace(task, flaky=flaky, tests=check.tests or task.tests)


def _unsteady(verdicts: list[Verdict]) -> set[str]:
    """Tests that passed in some of the runs only, those that a verdict rests on included."""
    passed = [set(verdict.passed) for verdict in verdicts]
    wavered = {test for verdict in verdicts for test in verdict.wavered}
    return wavered | {test for some in passed for test in some if not all(test in every for every in passed)}


def _read_cache(path: Path) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    for line in whole_lines(path):
        try:
            check = msgspec.json.decode(line, type=Check)
        except msgspec.DecodeError:  # of another release
            continue
        checks[check.task_id] = check
    return checks


def whole_lines(path: Path) -> list[bytes]:
    """Lines of a file that results are appended to. A last line that a killed run left unfinished is cut off."""
    if not path.is_file():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)
    return whole.split(b"\n")[:-1]


def _append(path: Path, check: Check) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(check) + b"\n")
