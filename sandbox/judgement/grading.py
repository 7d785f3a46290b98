"""Judgement: an agent's patch, on a clean tree in a fresh sandbox, against the hidden tests."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import msgspec

from protocol.errors import TaskError
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.judgement.checkout import BlockedError, git_apply, prepare, take_patch
from sandbox.judgement.logs import grade_by_log
from sandbox.judgement.protection import allowed_changes
from sandbox.judgement.reports import run_hidden_tests
from sandbox.judgement.verdicts import Report, Verdict, judge
from sandbox.patches import Patch, problem_of
from sandbox.tasks.sources import sandbox_spec
from sandbox.tasks.task import Task

__all__ = ["Patch", "Report", "Verdict", "grade", "judge", "take_patch"]

_NUM_RETRIES_OF_FLAKY = 2
_MORE_RUNS = ("turned", "turned", "turned", "true", "true")
"""After a run that would be rewarded though nothing in its log vouches for it, in drawn order. Code that answers by
chance, or by a race, is rewarded in at most 1 of 64 tries: it has to pass three runs and to fail three like them."""


async def grade(
    backend: Backend,
    task: Task,
    patch: Patch,
    *,
    run: str,
    lease: str,
    limits: Limits,
    cache_dir: Path,
    timeout_s: float,
    another_way: bool = False,
) -> Verdict:
    """Judge `patch` in a fresh sandbox of `task`.

    `another_way` is for a second opinion: every function and every class of tests in a process of its own, in an order
    drawn anew, with new canaries; where a log is read, the task's own command without canaries, and the `swebench`
    package's grader reads the log as well if it is installed.

    `timeout_s` is the deadline of one run of the hidden tests: tests that do not end within it have failed. A fail by
    nothing but tests known to flake is judged again. Raises `SandboxError`, `GradingError` or `TaskError` when
    the judgement, not the patch, failed: such an episode has no reward.
    """
    if problem := problem_of(patch):
        return Verdict(resolved=False, reason=problem)
    started = time.monotonic()
    spec = await asyncio.to_thread(sandbox_spec, task, run, lease, limits, cache_dir)
    for attempt in range(1 + _NUM_RETRIES_OF_FLAKY):
        async with await backend.create(spec) as sandbox:
            try:
                verdict = await _grade_in(sandbox, task, patch, timeout_s, another_way)
            except BlockedError as error:
                if not patch.changes:
                    raise TaskError(f"task {task.task_id!r}: its hidden tests do not fit its tree: {error}") from error
                return Verdict(resolved=False, reason=str(error))
        if verdict.resolved and verdict.unguarded and task.tests.absent != "passes":
            verdict = await _controlled(backend, spec, task, patch, timeout_s, verdict)
        flaked = bool(verdict.failed) and not verdict.tampered and set(verdict.failed) <= set(task.flaky)
        if not flaked or attempt == _NUM_RETRIES_OF_FLAKY:
            break
    return msgspec.structs.replace(verdict, duration_s=time.monotonic() - started)


async def _controlled(
    backend: Backend, spec: SandboxSpec, task: Task, patch: Patch, timeout_s: float, verdict: Verdict
) -> Verdict:
    """What is left of a reward for which nothing in the log vouches, after more runs. Some ask for the opposite.

    Where even the gold patch passes those, their tests are not those that decide: they say nothing, and the verdict
    stays unguarded.
    """
    for kind in secrets.SystemRandom().sample(_MORE_RUNS, len(_MORE_RUNS)):
        async with await backend.create(spec) as sandbox:
            control = await _grade_in(sandbox, task, patch, timeout_s, turned=kind == "turned")
        if kind == "true" and not control.resolved:
            return msgspec.structs.replace(control, reason=f"passed at first, and then not: {control.reason}")
        if kind == "turned" and control.resolved:
            break
    else:
        return msgspec.structs.replace(verdict, unguarded=False)
    if control.unguarded and not control.passed:
        return verdict  # there was nothing to turn
    if task.gold_patch:
        async with await backend.create(spec) as sandbox:
            gold = await _grade_in(sandbox, task, None, timeout_s, turned=True)
        if gold.resolved:
            return verdict
    reason = "the hidden tests were changed to ask for the opposite, and the outcome is still that they pass"
    return Verdict(resolved=False, tampered=True, reason=reason, failed=task.fail_to_pass, log=control.log)


async def _grade_in(
    sandbox: Sandbox,
    task: Task,
    patch: Patch | None,
    timeout_s: float,
    another_way: bool = False,
    *,
    turned: bool = False,
) -> Verdict:
    """`patch` None: the task's own, put there by git."""
    await prepare(sandbox, task, grading=True)
    taken, ignored = allowed_changes(task, patch.changes) if patch is not None else ([], [])
    if patch is None:
        await git_apply(sandbox, task.gold_patch, f"task {task.task_id!r}: gold_patch")
    if task.tests.runner in ("log", "expected-output"):
        verdict = await grade_by_log(sandbox, task, taken, timeout_s, plainly=another_way, turned=turned)
    else:
        seen = await run_hidden_tests(sandbox, task, taken, timeout_s, apart=another_way)
        verdict = msgspec.structs.replace(judge(task, seen.report, seen.nonce, seen.canaries), log=seen.log)
    return msgspec.structs.replace(verdict, ignored=tuple(ignored))
