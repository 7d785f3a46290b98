"""The rules of judgement, pure: from what was seen in one run of the hidden tests to a verdict."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from msgspec import Struct

from sandbox.judgement.canaries import Canaries, disturbed
from sandbox.tasks.task import Task

PASSING = frozenset({"passed", "xfailed", "xpassed"})


class Verdict(Struct, frozen=True, kw_only=True):
    """What a patch is worth, and why."""

    resolved: bool
    reason: str
    tampered: bool = False  # something other than honest test outcomes was seen
    passed: tuple[str, ...] = ()  # of the tests that the task names
    failed: tuple[str, ...] = ()  # of the same: failed, or not run
    ignored: tuple[str, ...] = ()  # paths of the patch that judgement does not take (tests, test configuration)
    duration_s: float = 0.0
    log: str = ""  # end of what the tests printed, for people

    @property
    def reward(self) -> float:
        """1.0 for a resolved task, else 0.0."""
        return float(self.resolved)


class Report(Struct, frozen=True, kw_only=True):
    """What the runner inside the sandbox says of one run (see `runner/run_tests.py`)."""

    nonce: str
    outcomes: dict[str, str]  # test id -> passed, failed, skipped, xfailed, xpassed
    repeated: list[str]  # tests that were reported twice, and whatever came after the end
    garbled: int
    finished: bool
    exit: int | None  # of the process that ran the tests; negative: killed by that signal
    out_of_time: bool
    broken: str = ""  # why the tests could not be run at all, before any code of the repository was


def judge(task: Task, report: Report | str, nonce: str, canaries: Canaries) -> Verdict:
    """The verdict on one run. Pure: the rules of judgement, without the machinery."""
    if isinstance(report, str):
        return Verdict(resolved=False, tampered=True, reason=report, failed=task.fail_to_pass)
    outcomes = report.outcomes
    passed, failed = split_outcomes(task, outcomes)

    def verdict(reason: str, *, resolved: bool = False, tampered: bool = False) -> Verdict:
        return Verdict(resolved=resolved, tampered=tampered, reason=reason, passed=passed, failed=failed)

    if not secrets.compare_digest(report.nonce.encode(), nonce.encode()):
        return verdict("the report is not of this run", tampered=True)
    if report.repeated or report.garbled:
        return verdict(f"a second report came with the first: {report.repeated[:3] or 'garbled'}", tampered=True)
    if report.out_of_time:
        return verdict("the tests did not end in time")
    if not report.finished:
        killed = report.exit is not None and report.exit < 0
        how = f"killed by signal {-(report.exit or 0)}" if killed else f"ended early with status {report.exit}"
        return verdict(f"the test process was {how}" if killed else f"the test process {how}", tampered=not killed)
    if problem := disturbed(canaries, outcomes):
        return verdict(problem, tampered=True)
    if failed:
        return verdict(f"{len(failed)} of {len(passed) + len(failed)} tests fail, first {failed[0]}")
    return verdict(f"all {len(passed)} tests pass", resolved=True)


def split_outcomes(task: Task, outcomes: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The task's tests that count as passed, and those that do not.

    An expected failure passes. A missing test fails. A skipped test passes only if it is not one that has to turn.
    """
    passed: list[str] = []
    failed: list[str] = []
    for tests, passing in ((task.fail_to_pass, PASSING), (task.pass_to_pass, PASSING | {"skipped"})):
        for test in tests:
            seen = _outcomes_of(test, outcomes)
            (passed if seen and set(seen) <= passing else failed).append(test)
    return tuple(passed), tuple(failed)


def _outcomes_of(test: str, outcomes: Mapping[str, str]) -> list[str]:
    """What became of a test; SWE-bench has names cut inside their parameters, which stand for all that they begin."""
    if test in outcomes:
        return [outcomes[test]]
    is_cut = test.count("[") > test.count("]")
    return [outcome for name, outcome in outcomes.items() if name.startswith(test)] if is_cut else []
