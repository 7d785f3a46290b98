"""The rules of judgement, pure: from what was seen in one run of the hidden tests to a verdict."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from msgspec import Struct

from sandbox.judgement.canaries import Canaries, disturbed
from sandbox.judgement.twins import Group, settle
from sandbox.tasks.task import STORED_OUTCOMES, Task

NOT_TURNED = "the hidden tests cannot be turned"


class Verdict(Struct, frozen=True, kw_only=True):
    """What a patch is worth, and why."""

    resolved: bool
    reason: str
    tampered: bool = False  # something other than honest test outcomes was seen
    passed: tuple[str, ...] = ()  # of the tests that the task names
    failed: tuple[str, ...] = ()  # of the same: failed, or not run
    unusual: dict[str, str] = {}  # of the same: ran, neither failed nor plainly passed, and what they did
    doubted: tuple[str, ...] = ()  # of the same: passed, and so did a test that asks for the opposite
    wavered: tuple[str, ...] = ()  # of the same: failed in one run of this change, and passed in another
    ignored: tuple[str, ...] = ()  # paths of the patch that judgement does not take (tests, test configuration)
    unguarded: bool = False  # code under test can say this as well as the tests, and nothing vouches for it
    starved: int = 0  # runs of tests that were made again because others had the processors meanwhile
    disputed: str = ""  # what a second opinion said against a reward
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
    outcomes, wrong = settle(canaries.groups, report.outcomes)
    passed, failed = split_outcomes(task, outcomes)
    unusual = unusual_outcomes(task, outcomes)

    def verdict(reason: str, *, resolved: bool = False, tampered: bool = False) -> Verdict:
        return Verdict(
            resolved=resolved,
            tampered=tampered,
            reason=reason,
            passed=passed,
            failed=failed,
            unusual=unusual,
            doubted=tuple(wrong),
        )

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
    if not report.outcomes:
        return verdict("no test could be collected")
    if problem := disturbed(canaries, outcomes):
        return verdict(problem, tampered=True)
    if wrong:
        return verdict(reason_of_doubt(wrong), tampered=True)
    if failed:
        return verdict(reason_of_failure(task, passed, failed, outcomes))
    return verdict(f"all {len(passed)} tests pass", resolved=True)


def split_outcomes(task: Task, outcomes: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The task's tests that count as passed, and those that do not.

    A test has passed only with the outcome that it had under the gold patch, which is stored where it is not plainly
    `passed`: code under test can call `pytest.xfail` and `pytest.skip`. A missing test has failed, unless the task's
    log names only what fails (`absent`).
    """
    passed: list[str] = []
    failed: list[str] = []
    for test in (*task.fail_to_pass, *task.pass_to_pass):
        seen = _outcomes_of(test, outcomes)
        good = "failed" not in seen if task.tests.absent == "passes" else seen == {task.tests.expected_outcome(test)}
        (passed if good else failed).append(test)
    return tuple(passed), tuple(failed)


def vouches(task: Task, groups: Iterable[Group]) -> bool:
    """Whether twins vouch for a reward: those of a test that has to turn. Whoever reads the module can tell a plain
    canary from the tests, and who passes what has no twins needs no solution to pass those that passed before."""
    twinned = [group.test for group in groups]
    return bool(twinned) if not task.fail_to_pass else not set(task.fail_to_pass).isdisjoint(twinned)


def unusual_outcomes(task: Task, outcomes: Mapping[str, str]) -> dict[str, str]:
    """The named tests that have one outcome which could be stored as expected and is not `passed`."""
    seen = {test: _outcomes_of(test, outcomes) for test in (*task.fail_to_pass, *task.pass_to_pass)}
    storable = set(STORED_OUTCOMES) - {"passed"}
    return {test: min(found) for test, found in seen.items() if len(found) == 1 and found <= storable}


def reason_of_failure(task: Task, passed: tuple[str, ...], failed: tuple[str, ...], outcomes: Mapping[str, str]) -> str:
    """What to say of a run in which `failed` is not empty."""
    first = failed[0]
    found = ", ".join(sorted(_outcomes_of(first, outcomes))) or "not run"
    how = "" if found == "failed" else f" ({found}, expected {task.tests.expected_outcome(first)})"
    return f"{len(failed)} of {len(passed) + len(failed)} tests fail, first {first}{how}"


def reason_of_doubt(doubted: Mapping[str, str]) -> str:
    """What to say of tests that passed while a twin, which asks for the opposite, did not fail."""
    test, outcome = next(iter(doubted.items()))
    return f"{test} passed, but a test that asks for the opposite, and so must fail, was {outcome}"


def _outcomes_of(test: str, outcomes: Mapping[str, str]) -> set[str]:
    """What became of a test; SWE-bench has names cut inside their parameters, which stand for all that they begin."""
    if test in outcomes:
        return {outcomes[test]}
    is_cut = test.count("[") > test.count("]")
    return {outcome for name, outcome in outcomes.items() if name.startswith(test)} if is_cut else set()
