"""Judgement: an agent's patch, on a clean tree in a fresh sandbox, against the hidden tests."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import msgspec

from protocol.errors import GradingError, TaskError
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.judgement.checkout import BlockedError, git_apply, prepare, take_patch
from sandbox.judgement.control import Turning, turned_texts, turnings
from sandbox.judgement.logs import SetUpError, bring_tests, grade_by_log
from sandbox.judgement.protection import allowed_changes
from sandbox.judgement.reports import hidden_modules, run_hidden_tests
from sandbox.judgement.starvation import StarvedError
from sandbox.judgement.verdicts import NOT_TURNED, Report, Verdict, judge, vouches
from sandbox.patches import Patch, problem_of
from sandbox.tasks.sources import sandbox_spec
from sandbox.tasks.task import Task

__all__ = ["Patch", "Report", "Verdict", "grade", "judge", "take_patch"]

_NUM_RETRIES_OF_FLAKY = 2
_MORE_RUNS = ("turned", "turned", "turned", "true", "true")
"""After a run that would be rewarded though no twin vouches for it, in drawn order. Code that answers by
chance, or by a race, is rewarded in at most 1 of 64 tries: it has to pass three runs and to fail three like them."""
_NUM_WHERE_RUNS_DIFFER = 2
"""Runs that all have to pass where a reward's second run did not: tests that flake now and then cost no reward."""


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
    """Judge `patch` in a fresh sandbox of `task`, and before it is rewarded once more in another.

    `another_way` is for a second opinion: every function and every class of tests in a process of its own, in an order
    drawn anew, with new canaries; where a log is read, the task's own command without canaries, and the `swebench`
    package's grader reads the log as well if it is installed.

    `timeout_s` is the deadline of one run of the hidden tests: tests that do not end within it have failed, unless the
    host starved them (`starvation.py`): then they are run once more, and if starved again, `GradingError` (kind:
    starved). A fail by nothing but tests known to flake is judged again. Raises `SandboxError`, `GradingError` or
    `TaskError` when the judgement, not the patch, failed: such an episode has no reward.
    """
    if problem := problem_of(patch):
        return Verdict(resolved=False, reason=problem)
    started = time.monotonic()
    spec = await asyncio.to_thread(sandbox_spec, task, run, lease, limits, cache_dir)
    runs = _Runs(backend, spec, task, timeout_s)
    try:
        verdict = await runs.of(patch, another_way=another_way)
    except BlockedError as error:
        if not patch.changes:
            raise TaskError(f"task {task.task_id!r}: its hidden tests do not fit its tree: {error}") from error
        return Verdict(resolved=False, reason=str(error))
    if verdict.resolved and verdict.unguarded and task.tests.absent != "passes":
        verdict = await _controlled(runs, patch, verdict)
    elif verdict.resolved and not another_way:
        verdict = await _confirmed(runs, patch, verdict)
    return msgspec.structs.replace(verdict, duration_s=time.monotonic() - started, starved=runs.num_starved)


async def _confirmed(runs: _Runs, patch: Patch, verdict: Verdict) -> Verdict:
    """A reward, or what a second run with other canaries says against it.

    Objects that decide what they equal (the first that comes, any by a draw) may choose the true one among a test's
    twins by luck; they have to be lucky twice.
    """
    again = await runs.of(patch)
    if again.resolved:
        return verdict
    if not again.tampered:
        for _ in range(_NUM_WHERE_RUNS_DIFFER):
            if not (await runs.of(patch)).resolved:
                break
        else:
            return verdict
    return _wavering(again)


def _wavering(again: Verdict) -> Verdict:
    """The verdict of a run that says otherwise than the one before."""
    wavered = () if again.tampered else again.failed
    return msgspec.structs.replace(again, reason=f"passed at first, and then not: {again.reason}", wavered=wavered)


class _Runs:
    """Runs of one task's hidden tests, each in a fresh sandbox, and once more where the host starved it."""

    def __init__(self, backend: Backend, spec: SandboxSpec, task: Task, timeout_s: float) -> None:
        self._backend, self._spec = backend, spec
        self.task, self.timeout_s = task, timeout_s
        self.num_starved = 0

    async def of(self, patch: Patch | None, *, another_way: bool = False, turning: Turning | None = None) -> Verdict:
        """One run, made again where it failed by nothing but tests known to flake; `patch` None: the task's own.

        Raises as `grade` does, and `BlockedError`.
        """
        for _ in range(_NUM_RETRIES_OF_FLAKY):
            verdict = await self._of(patch, another_way, turning)
            flaked = bool(verdict.failed) and not verdict.tampered and set(verdict.failed) <= set(self.task.flaky)
            if turning or not flaked:
                return verdict
        return await self._of(patch, another_way, turning)

    async def _of(self, patch: Patch | None, another_way: bool, turning: Turning | None) -> Verdict:
        try:
            return await self._in_time(patch, another_way, turning)
        except SetUpError as error:  # what is to be built is the change, too
            if patch is None or not await self._sets_up():
                raise
            reason = f"the task's set-up works on its own solution, and with the change it does not: {error}"
            return Verdict(resolved=False, reason=reason, failed=self.task.fail_to_pass)

    async def _in_time(self, patch: Patch | None, another_way: bool, turning: Turning | None) -> Verdict:
        try:
            return await self._once(patch, self.timeout_s, another_way, turning)
        except StarvedError as error:
            self.num_starved += 1
            longer = error.longer
        try:
            return await self._once(patch, longer * self.timeout_s, another_way, turning)
        except StarvedError as error:
            text = f"task {self.task.task_id!r}, for the second time: {error}. Have less run there at once"
            raise GradingError(text, kind="starved") from error

    async def _sets_up(self) -> bool:
        """Whether the task's set-up works on its own solution, or, where none is known, on the tree that was given."""
        async with await self._backend.create(self._spec) as sandbox:
            await prepare(sandbox, self.task, grading=True)
            if self.task.gold_patch:
                await git_apply(sandbox, self.task.gold_patch, f"task {self.task.task_id!r}: gold_patch")
            try:
                await bring_tests(sandbox, self.task, rebuild=True)
            except (SetUpError, StarvedError):
                return False
        return True

    async def _once(
        self, patch: Patch | None, deadline_s: float, another_way: bool, turning: Turning | None
    ) -> Verdict:
        async with await self._backend.create(self._spec) as sandbox:
            return await _grade_in(sandbox, self.task, patch, deadline_s, self.timeout_s, another_way, turning)


async def _controlled(runs: _Runs, patch: Patch, verdict: Verdict) -> Verdict:
    """What is left of a reward for which nothing in the run vouches, after more runs. Some ask for the opposite.

    A test that has to turn and passes all the same was not turned where the gold patch passes it as well; else its
    outcome is not its own. What passed however it was turned has nothing that vouches for it: the verdict stays
    unguarded.
    """
    left = turnings(_MORE_RUNS.count("turned"))
    never_failed = set(runs.task.fail_to_pass)
    for kind in secrets.SystemRandom().sample(_MORE_RUNS, len(_MORE_RUNS)):
        if kind == "true":
            if not (control := await runs.of(patch)).resolved:
                return _wavering(control)
            continue
        turning = left.pop()
        control = await runs.of(patch, turning=turning)
        passing = never_failed.intersection(control.passed) if not control.resolved else set(runs.task.fail_to_pass)
        never_failed &= passing
        if not passing and not control.resolved:
            continue
        if control.reason == NOT_TURNED:
            return verdict
        if runs.task.gold_patch:
            gold = await runs.of(None, turning=turning)
            if gold.resolved:
                return verdict  # these tests are not those that decide
            if not control.resolved and passing <= set(gold.passed):
                continue
        elif not control.resolved:
            continue
        reason = "the hidden tests were changed to ask for the opposite, and the outcome is still that they pass"
        return Verdict(resolved=False, tampered=True, reason=reason, failed=runs.task.fail_to_pass, log=control.log)
    return msgspec.structs.replace(verdict, unguarded=bool(never_failed))


async def _grade_in(
    sandbox: Sandbox,
    task: Task,
    patch: Patch | None,
    deadline_s: float,
    their_time_s: float,
    another_way: bool,
    turning: Turning | None,
) -> Verdict:
    """`patch` None: the task's own, put there by git. Raises `StarvedError`."""
    await prepare(sandbox, task, grading=True)
    taken, ignored = allowed_changes(task, patch.changes) if patch is not None else ([], [])
    if patch is None:
        await git_apply(sandbox, task.gold_patch, f"task {task.task_id!r}: gold_patch")
    if task.tests.runner in ("log", "expected-output"):
        verdict = await grade_by_log(
            sandbox, task, taken, deadline_s, plainly=another_way, turning=turning, their_time_s=their_time_s
        )
    else:
        opposite = turned_texts(task, hidden_modules(task), turning) if turning else None
        if turning and not opposite:
            return Verdict(resolved=True, unguarded=True, reason=NOT_TURNED)
        seen = await run_hidden_tests(
            sandbox, task, taken, deadline_s, apart=another_way, opposite=opposite, their_time_s=their_time_s
        )
        unguarded = not another_way and not vouches(task, seen.canaries.groups)
        verdict = judge(task, seen.report, seen.nonce, seen.canaries)
        verdict = msgspec.structs.replace(verdict, log=seen.log, unguarded=unguarded)
    return msgspec.structs.replace(verdict, ignored=tuple(ignored))
