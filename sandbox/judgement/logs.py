"""Judgement of tasks whose tests are a command and whose outcomes are in its log (the public datasets)."""

from __future__ import annotations

import secrets

from msgspec.structs import replace

from protocol.errors import GradingError
from sandbox.base import Sandbox
from sandbox.judgement.checkout import git_apply, hide_history, put_changes
from sandbox.judgement.control import Turning, turn_tests, with_nothing_before
from sandbox.judgement.harness import can_ask_harness, resolved_by_harness
from sandbox.judgement.log_canaries import Planted, plant_for_log
from sandbox.judgement.sealing import seal_what_judges
from sandbox.judgement.starvation import check_had_time
from sandbox.judgement.twins import settle
from sandbox.judgement.verdicts import (
    NOT_TURNED,
    Verdict,
    reason_of_doubt,
    reason_of_failure,
    split_outcomes,
    unusual_outcomes,
    vouches,
)
from sandbox.parsers.own import parse_r2e, without_duration
from sandbox.parsers.reading import LogSource, between_markers, parse_log, shows_a_run, worse
from sandbox.patches import Change
from sandbox.tasks.task import Task
from sandbox.tasks.test_paths import is_compiled_source, paths_of_diff

MAX_LOG_BYTES = 16 << 20
"""A longer log is cut in the middle, and then it is no evidence: nobody knows what stood there."""
_SHOWN_CHARS = 2000
_SAID_AT_THE_END = frozenset({"reward", "tests-json"})  # parsers of commands of ours: their last line is the outcome
_SETUP_TIMEOUT_S = 600.0


class SetUpError(GradingError):
    """A task's set-up failed: whether the tree or the change on it is to blame is not known yet."""


async def grade_by_log(
    sandbox: Sandbox,
    task: Task,
    taken: list[Change],
    timeout_s: float,
    *,
    plainly: bool = False,
    turning: Turning | None = None,
    their_time_s: float | None = None,
) -> Verdict:
    """Put the change and the hidden tests on the clean tree, run the task's command, read its log.

    `plainly`: without canaries, as the public harness does, and by its grader where that is installed. `turning`: the
    control of a command without canaries, whose tests must fail (`control.py`). Raises `StarvedError` when the place
    gave the tests less than `their_time_s` (default: `timeout_s`) before the deadline, `SetUpError` as `bring_tests`.
    """
    await put_changes(sandbox, taken)
    await bring_tests(sandbox, task, rebuild=any(is_compiled_source(change.path) for change in taken))
    planted = None if plainly or turning else await plant_for_log(sandbox, task)

    command = planted.command if planted else task.tests.command
    if turning and (command := await turn_tests(sandbox, task, command, turning) or "") == "":
        return Verdict(resolved=True, unguarded=True, reason=NOT_TURNED)
    if task.tests.applies_tests:
        place = f"/tmp/.{secrets.token_hex(8)}"
        command, rest = with_nothing_before(task, command, place)
        await sandbox.write(place, rest.encode())
    elif task.image is not None:  # which has the tests as they were before canaries rode along
        await hide_history(sandbox, task)
    await seal_what_judges(sandbox, task)
    result = await sandbox.exec(command, timeout=timeout_s, max_output=MAX_LOG_BYTES)
    if result.timed_out:
        check_had_time(result, their_time_s or timeout_s, sandbox.spec.limits.cpus)
        verdict = Verdict(resolved=False, reason="the tests did not end in time", failed=task.fail_to_pass)
    elif result.truncated:
        reason = f"the log has {result.total_bytes} bytes, more than {MAX_LOG_BYTES}: one that was cut is no evidence"
        verdict = Verdict(resolved=False, reason=reason, failed=task.fail_to_pass)
    elif task.tests.parser in _SAID_AT_THE_END and result.exit_code != 0:
        reason = f"the command that says the outcome at its end stopped before it (status {result.exit_code})"
        verdict = Verdict(resolved=False, reason=reason, failed=task.fail_to_pass)
    elif task.tests.runner == "expected-output":
        verdict = _judge_expected(task, result.text, planted)
    else:
        verdict = _judge_named(task, result.text, planted)
        if plainly and verdict.resolved and can_ask_harness(task):
            by_harness = resolved_by_harness(task, result.text)
            verdict = verdict if by_harness else replace(verdict, resolved=False, reason="swebench's grader says no")
    vouched = planted is not None and vouches(task, planted.groups)
    return replace(verdict, unguarded=not vouched and not plainly, log=result.text[-_SHOWN_CHARS:])


def _is_built_before(task: Task) -> bool:
    """Whether a change is built before its tests are there: its set-up script would see them as they are, and code
    under test could tell them from their twins by what the script left. Tests that are built, too, have to be there."""
    tests = {*task.test_files, *paths_of_diff(task.test_patch)}
    return task.tests.runner == "log" and all(path.endswith(".py") for path in tests if path != "/dev/null")


async def bring_tests(sandbox: Sandbox, task: Task, *, rebuild: bool) -> None:
    """Put the hidden tests on the tree and run the task's set-up, and what builds the tree again, if that is asked for.

    Raises `SetUpError`, `StarvedError`.
    """
    built_before = _is_built_before(task)
    if built_before:
        await _set_up(sandbox, task, rebuild)
    if task.test_patch and not task.tests.applies_tests:
        await git_apply(sandbox, task.test_patch, f"task {task.task_id!r}: test_patch")
    hidden = {path: text for path, text in task.test_files.items() if not path.startswith("/")}
    await put_changes(sandbox, [_hidden_file(path, text) for path, text in hidden.items()])
    for path in task.test_files.keys() - hidden.keys():  # beside the repository, where no change of an agent is
        await sandbox.write(path, (task.test_files[path] or "").encode(), mode=0o755)
    if not built_before:
        await _set_up(sandbox, task, rebuild)


async def _set_up(sandbox: Sandbox, task: Task, rebuild: bool) -> None:
    for field, script in (("setup", task.tests.setup), ("rebuild", task.tests.rebuild if rebuild else "")):
        if not script:
            continue
        done = await sandbox.exec(script, timeout=_SETUP_TIMEOUT_S)
        if done.timed_out:
            check_had_time(done, _SETUP_TIMEOUT_S, sandbox.spec.limits.cpus)
        if done.exit_code != 0:
            text = f"task {task.task_id!r}: tests.{field} failed: {done.text[-_SHOWN_CHARS:]}"
            raise SetUpError(text, kind="setup")
        await sandbox.kill_all()  # nothing that it started looks on


def _hidden_file(path: str, text: str | None) -> Change:
    kept = text is not None
    return Change(path=path, kind="file" if kept else "deleted", content=(text or "").encode() if kept else b"")


def _judge_named(task: Task, log: str, planted: Planted | None) -> Verdict:
    """All named tests passed, and nothing in the log says that it is not the tests' own."""
    part = between_markers(log) if task.tests.applies_tests else log
    if part is None:
        return _tampered(task, "the log has not exactly one pair of markers")
    source = LogSource(instance_id=task.task_id, version=task.version)
    parsed = parse_log(task.tests.parser, part, planted.names if planted else (), source)
    groups = planted.groups if planted else ()
    deciding = {*_named(task), *(test for group in groups for test in group.all)}
    if contradicted := sorted(deciding.intersection(parsed.contradicted)):
        return _tampered(task, f"the log gives {contradicted[0]} two outcomes")
    seen = _comparable(task, parsed.cautious())
    if task.tests.absent == "passes" and not seen and not shows_a_run(log):
        reason = "the log has neither an outcome nor a sign that a test ran"
        return Verdict(resolved=False, reason=reason, failed=task.fail_to_pass)
    outcomes, doubted = settle(groups, seen)
    passed, failed = split_outcomes(task, outcomes)
    if planted and (wrong := planted.wrong(seen, resolved=not failed)):
        return _tampered(task, wrong)
    if doubted:
        return replace(_tampered(task, reason_of_doubt(doubted)), doubted=tuple(doubted))
    if failed:
        reason = reason_of_failure(task, passed, failed, outcomes)
        unusual = unusual_outcomes(task, outcomes)
        return Verdict(resolved=False, reason=reason, passed=passed, failed=failed, unusual=unusual)
    return Verdict(resolved=True, reason=f"all {len(passed)} tests pass", passed=passed)


def _comparable(task: Task, outcomes: dict[str, str]) -> dict[str, str]:
    """Outcomes under the names that the task uses."""
    if not task.tests.untimed:
        return outcomes
    plain: dict[str, str] = {}
    for test, outcome in outcomes.items():
        name = without_duration(test)
        plain[name] = worse(plain.get(name, outcome), outcome)
    return plain | {test: plain[without_duration(test)] for test in _named(task) if without_duration(test) in plain}


def _named(task: Task) -> tuple[str, ...]:
    return (*task.fail_to_pass, *task.pass_to_pass)


def _tampered(task: Task, reason: str) -> Verdict:
    return Verdict(resolved=False, tampered=True, reason=reason, failed=task.fail_to_pass)


def _judge_expected(task: Task, log: str, planted: Planted | None) -> Verdict:
    """R2E-Gym's rule: exactly the expected tests, each with exactly the expected status."""
    statuses, expected = parse_r2e(log), task.tests.expected
    lower = {test: "passed" if status == "PASSED" else "failed" for test, status in statuses.items()}
    settled, doubted = settle(planted.groups if planted else (), lower)
    twins = {test for group in (planted.groups if planted else ()) for test in group.all}
    real = {test: status for test, status in statuses.items() if test not in twins}
    real |= {test: "PASSED" if settled[test] == "passed" else "FAILED" for test in twins if test in settled}
    real = planted.without(real) if planted else real
    differing = sorted(t for t in real.keys() | expected.keys() if real.get(t) != expected.get(t))
    resolved = not differing and bool(expected)
    if planted and (wrong := planted.wrong(lower, resolved)):
        return _tampered(task, wrong)
    if doubted:
        return _tampered(task, reason_of_doubt(doubted))
    return Verdict(
        resolved=resolved,
        reason=f"{len(differing)} tests differ, first {differing[0]}" if differing else "the outcome is as expected",
        passed=tuple(sorted(expected.keys() - set(differing))),
        failed=tuple(differing),
    )
