"""Readings that belong to one dataset: R2E-Gym's summaries, SWE-bench Pro's JSON, task directories' reward."""

from __future__ import annotations

import re

import msgspec

REWARD_TEST = "reward"
"""The one test of a task whose tests write a number."""
TESTS_JSON_MARK = ">>>>> Tests as JSON: "
REWARD_MARK = ">>>>> Reward: "
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SUMMARY = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S.*)$", re.MULTILINE)
_STATUSES = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "skipped"}

_DURATIONS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        r"\s*\[\s*\d+(?:\.\d+)?\s*(?:ms|s)\s*\]\s*$",
        r"\s+in\s+\d+(?:\.\d+)?\s+(?:msec|sec)\b",
        r"\s*\(\s*\d+(?:\.\d+)?\s*(?:ms|s)\s*\)\s*$",
    )
)


class _NamedTest(msgspec.Struct):
    name: str
    status: str


class _Tests(msgspec.Struct):
    tests: list[_NamedTest]


def parse_r2e(log: str) -> dict[str, str]:
    """R2E-Gym's reading of a log: upper-case status by test name without its file, `::` written as a dot."""
    _, found, summary = _COLOUR.sub("", log).partition("short test summary info")
    statuses: dict[str, str] = {}
    for match in _SUMMARY.finditer(summary) if found else ():
        status, rest = match.groups()
        name = ".".join(rest.split("::")[1:]).split(" - ")[0]
        if status in ("PASSED", "FAILED", "ERROR") and name:
            statuses[name] = status
    return statuses


def without_duration(test: str) -> str:
    """A test's name without colours and without the time it took (the rule of SWE-rebench V2)."""
    for form in (_COLOUR, *_DURATIONS):
        test = form.sub("", test)
    return test.strip()


def parse_reward(log: str) -> dict[str, str]:
    """The line that starts with `REWARD_MARK`: `passed` for 1 or more, `failed` for less; nothing else counts."""
    said = _only(log, REWARD_MARK)
    if said is None:
        return {}
    try:
        return {REWARD_TEST: "passed" if float(said) >= 1.0 else "failed"}
    except ValueError:
        return {}


def parse_tests_json(log: str) -> dict[str, str]:
    """The line that starts with `TESTS_JSON_MARK`: `{"tests": [{"name": ..., "status": "PASSED"}]}`."""
    said = _only(log, TESTS_JSON_MARK)
    if said is None:
        return {}
    try:
        tests = msgspec.json.decode(said, type=_Tests).tests
    except (msgspec.DecodeError, UnicodeError):
        return {}
    return {test.name: _STATUSES.get(test.status.upper(), "failed") for test in tests}


def _only(log: str, mark: str) -> str | None:
    """What follows `mark`; None where more than one line has it: code under test can write such lines."""
    lines = [line for line in log.split("\n") if line.startswith(mark)]
    return lines[0].removeprefix(mark).strip() if len(lines) == 1 else None
