"""Test logs -> outcomes: pytest's summary lines read here, every other framework by the `swebench` package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from msgspec import Struct

from protocol.errors import ConfigError, GradingError

START_MARKER, END_MARKER = ">>>>> Start Test Output", ">>>>> End Test Output"
_SUMMARY = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S.*)$", re.MULTILINE)
_OUTCOMES = {
    "PASSED": "passed",
    "FAILED": "failed",
    "ERROR": "failed",
    "SKIPPED": "skipped",
    "XFAIL": "xfailed",
    "XPASS": "xpassed",
}
_COMPLAINT = re.compile(r"FAIL|ERROR| [EF]\s*$")
_MAX_COMPLAINTS = 50_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class ParsedLog(Struct, frozen=True, kw_only=True):
    """Outcomes by test; `contradicted` are tests that the log gives two different outcomes."""

    outcomes: dict[str, str]
    contradicted: list[str] = []


def parse_log(parser: str, log: str) -> ParsedLog:
    """Read a log: `pytest` and `parse_log_pytest` are the summary lines of `pytest -rA`, any other name is a parser of
    swebench's registry. Raises `ConfigError` where that package is missing, `GradingError` for an unknown name.
    """
    return _parse_pytest(log) if parser in ("", "pytest", "parse_log_pytest") else _parse_by_swebench(parser, log)


def between_markers(log: str) -> str | None:
    """The part of a log that SWE-bench's markers enclose; None unless there is exactly one of each, in order."""
    if log.count(START_MARKER) != 1 or log.count(END_MARKER) != 1:
        return None
    _, _, rest = log.partition(START_MARKER)
    inside, found, _ = rest.partition(END_MARKER)
    return inside if found else None


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


def _parse_pytest(log: str) -> ParsedLog:
    outcomes: dict[str, str] = {}
    contradicted: list[str] = []
    for match in _SUMMARY.finditer(_COLOUR.sub("", log)):
        status, rest = match.groups()
        test = rest.split()[0]  # names with spaces in their parameters end there, in the datasets' lists too
        outcome = _OUTCOMES[status]
        if test.startswith("[") and status == "SKIPPED":  # `SKIPPED [2] file:line: reason` names no test
            continue
        # an error in a teardown follows the PASSED line of the same test: it is a failure, no contradiction
        cut = test.count("[") > test.count("]")
        if outcomes.get(test, outcome) != outcome and status != "ERROR" and not cut:
            contradicted.append(test)
        outcomes[test] = worse(outcomes.get(test, outcome), outcome)
    return ParsedLog(outcomes=outcomes, contradicted=contradicted)


def worse(one: str, other: str) -> str:
    """Of two outcomes under one name the one that is less of a pass: no plain pass hides a skip."""
    return max(one, other, key=lambda outcome: (outcome != "passed", outcome == "failed"))


def _parse_by_swebench(parser: str, log: str) -> ParsedLog:
    registry = _registry()
    if parser not in registry:
        raise GradingError(f"swebench has no log parser {parser!r}; it has {sorted(registry)[:8]} ...", kind="parser")
    read = registry[parser]
    outcomes = {test: _OUTCOMES.get(status, "failed") for test, status in read(log, None).items()}
    # in these parsers the last line of a test wins, and code under test can print one when everything is over
    complaints = {line for line in log.split("\n") if _COMPLAINT.search(line)}
    if len(complaints) > _MAX_COMPLAINTS:
        return ParsedLog(outcomes=outcomes, contradicted=[f"more than {_MAX_COMPLAINTS} tests"])
    failed = {t for line in complaints for t, s in read(line, None).items() if _OUTCOMES.get(s, "failed") == "failed"}
    return ParsedLog(outcomes=outcomes | dict.fromkeys(failed, "failed"))


def _registry() -> Mapping[str, Callable[[str, None], Mapping[str, str]]]:
    try:
        from swebench.harness.log_parsers import PARSER_REGISTRY
    except ImportError as error:
        raise ConfigError(
            "this task's log is read by the swebench package: pip install 'longhaul[grading]'", kind="extra"
        ) from error
    registry: Mapping[str, Callable[[str, None], Mapping[str, str]]] = PARSER_REGISTRY
    return registry
