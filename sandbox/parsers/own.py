"""Readings that belong to one dataset: R2E-Gym's summaries, SWE-bench Pro's JSON, task directories' reward."""

from __future__ import annotations

import re

import msgspec

REWARD_TEST = "reward"
"""The one test of a task whose tests write a number."""
MAX_REWARD_BYTES = 4096
TESTS_JSON_MARK = ">>>>> Tests as JSON: "
REWARD_MARK = ">>>>> Reward: "
R2E_STATUSES = ("PASSED", "FAILED", "ERROR")
"""Those that count in R2E-Gym's reading."""
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
        if status in R2E_STATUSES and name:
            statuses[name] = status
    return statuses


def without_duration(test: str) -> str:
    """A test's name without colours and without the time it took (the rule of SWE-rebench V2)."""
    for form in (_COLOUR, *_DURATIONS):
        test = form.sub("", test)
    return test.strip()


def parse_reward(log: str) -> dict[str, str]:
    """The line that starts with `REWARD_MARK`: `passed` for 1 or more, `failed` for less; nothing else counts.

    Of rewards by name (harbor's `reward.json`) `reward` counts, or else the least of them.
    """
    said = _only(log, REWARD_MARK)
    if said is None:
        return {}
    try:
        rewards = msgspec.json.decode(said, type=dict[str, float]) if said.startswith("{") else {"": float(said)}
        least = rewards.get(REWARD_TEST, min(rewards.values()))
    except (ValueError, UnicodeError):
        return {}
    return {REWARD_TEST: "passed" if least >= 1.0 else "failed"}


def parse_tests_json(log: str) -> dict[str, str]:
    """The line that starts with `TESTS_JSON_MARK`: `{"tests": [{"name": ..., "status": "PASSED"}]}`."""
    said = _only(log, TESTS_JSON_MARK)
    if said is None:
        return {}
    try:
        tests = msgspec.json.decode(said, type=_Tests).tests
    except (msgspec.DecodeError, UnicodeError):
        return {}
    found: dict[str, str] = {}
    for test in tests:  # of tests of one name that passes which passes anywhere: so the dataset's own judgement counts
        outcome = _STATUSES.get(test.status.upper(), "failed")
        found[test.name] = "passed" if "passed" in (outcome, found.get(test.name)) else outcome
    return found


def _only(log: str, mark: str) -> str | None:
    """What follows `mark`; None where more than one line has it: code under test can write such lines."""
    lines = [line for line in log.split("\n") if line.startswith(mark)]
    return lines[0].removeprefix(mark).strip() if len(lines) == 1 else None
