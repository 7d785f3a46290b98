"""One log -> outcomes by test: pytest's summary lines read here, every other framework by the `swebench` package.

Outcomes are exactly those that swebench's parser of the name gives. What makes a reader doubt them is kept beside
them, and it is of consequence for named tests only: a log holds what tests of tests printed, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from msgspec import Struct

from protocol.errors import ConfigError, GradingError
from sandbox.parsers.names import SUMMARY_PARSERS, SWEBENCH_PARSERS
from sandbox.parsers.own import parse_reward, parse_tests_json

START_MARKER, END_MARKER = ">>>>> Start Test Output", ">>>>> End Test Output"
_OUTCOMES = {
    "PASSED": "passed",
    "FAILED": "failed",
    "ERROR": "failed",
    "SKIPPED": "skipped",
    "XFAIL": "xfailed",
    "XPASS": "xpassed",
}
_SWEBENCH_STATUSES = ("FAILED", "PASSED", "SKIPPED", "ERROR", "XFAIL")
_COMPLAINT = re.compile(r"FAIL|ERROR| [EF]\s*$")
_MAX_COMPLAINTS = 50_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SKIP_COUNT = re.compile(r"\[\d+\]")
_SUMMARY_HEADER = re.compile(r"^=+ short test summary info =+\s*$", re.MULTILINE)
_RAN = re.compile(  # what runners print that name only failures, when they ran at least one test
    r"Executed [1-9]\d* of \d+|TOTAL: [1-9]\d* (?:SUCCESS|FAILED)|[1-9]\d* passing|Tests:\s+[1-9]\d*"
    r"|Test Suites:\s+(?:\d+ \w+, )*[1-9]\d* total|^# tests [1-9]\d*|[1-9]\d* specs?, \d+ failures?|': ok$",
    re.MULTILINE,
)


class LogSource(Struct, frozen=True, kw_only=True):
    """What some of swebench's parsers ask of the task whose log they read."""

    instance_id: str = ""
    version: str = ""


class ParsedLog(Struct, frozen=True, kw_only=True):
    """Outcomes by test, and what speaks against them.

    `worst` has the tests of which the log also says something worse than `outcomes`; `contradicted` are those to which
    it gives two outcomes where an honest run gives one.
    """

    outcomes: dict[str, str]
    worst: dict[str, str] = {}
    contradicted: list[str] = []

    def cautious(self) -> dict[str, str]:
        """Outcomes by test, the worst of each."""
        return {**self.outcomes, **self.worst}


def parse_log(parser: str, log: str, vouching: Collection[str] = (), source: LogSource | None = None) -> ParsedLog:
    """Read a log by the parser of a name (`sandbox/parsers/names.py`).

    `vouching` are names of tests that nobody could know before the run: where a summary of pytest holds one, what
    stands before that summary (captured output, with summaries of inner sessions) decides nothing. Raises
    `ConfigError` where the swebench package is needed and missing, `GradingError` for an unknown name.
    """
    if parser == "reward":
        return ParsedLog(outcomes=parse_reward(log))
    if parser == "tests-json":
        return ParsedLog(outcomes=parse_tests_json(log))
    if parser in ("", "pytest"):
        return _parse_summary(_own_summary(without_colours(log), vouching), strict=False)
    if parser in SUMMARY_PARSERS:
        log = _own_summary(log, vouching)
    if parser == "parse_log_pytest":
        return _parse_summary(log, strict=True)
    return _parse_by_swebench(parser, log, source or LogSource())


def without_colours(log: str) -> str:
    """A log as a terminal without colours shows it."""
    return _COLOUR.sub("", log)


def between_markers(log: str) -> str | None:
    """The part of a log that SWE-bench's markers enclose; None unless there is exactly one of each, in order."""
    if log.count(START_MARKER) != 1 or log.count(END_MARKER) != 1:
        return None
    _, _, rest = log.partition(START_MARKER)
    inside, found, _ = rest.partition(END_MARKER)
    return inside if found else None


def shows_a_run(log: str) -> bool:
    """Whether a runner says in its log that it ran at least one test (swebench's rule for runs without outcomes)."""
    return bool(_RAN.search(log))


def worse(one: str, other: str) -> str:
    """Of two outcomes under one name the one that is less of a pass: no plain pass hides a skip."""
    return max(one, other, key=lambda outcome: (outcome != "passed", outcome == "failed"))


def _own_summary(log: str, vouching: Collection[str]) -> str:
    """`log` from the first summary on that holds a vouching name; all of it where none does."""
    if not vouching:
        return log
    starts = [match.start() for match in _SUMMARY_HEADER.finditer(log)]
    for start, end in zip(starts, [*starts[1:], len(log)], strict=False):
        if any(name in log[start:end] for name in vouching):
            return log[start:]
    return log


def _parse_summary(log: str, *, strict: bool) -> ParsedLog:
    """Lines of `pytest -rA`; `strict` reads exactly as swebench's `parse_log_pytest`, else XPASS counts, too."""
    outcomes: dict[str, str] = {}
    worst: dict[str, str] = {}
    contradicted: list[str] = []
    starts = _SWEBENCH_STATUSES if strict else tuple(_OUTCOMES)
    for line in log.split("\n"):
        if not line.startswith(starts):
            continue
        words = (line.replace(" - ", " ") if line.startswith("FAILED") else line).split()
        # `SKIPPED [2] file:line: reason` names no test
        if len(words) < 2 or (words[0] == "SKIPPED" and _SKIP_COUNT.fullmatch(words[1])):
            continue
        if words[0] not in _OUTCOMES and not strict:
            continue
        test, status = words[1], words[0]  # names with blanks in their parameters end there, in the datasets' lists too
        outcome = _OUTCOMES.get(status, "failed")
        # an error in a teardown follows the PASSED line of the same test: it is a failure, no contradiction
        cut = test.count("[") > test.count("]")
        if outcomes.get(test, outcome) != outcome and status != "ERROR" and not cut:
            contradicted.append(test)
        worst[test] = worse(worst.get(test, outcome), outcome)
        outcomes[test] = outcome
    differing = {test: outcome for test, outcome in worst.items() if outcome != outcomes[test]}
    return ParsedLog(outcomes=outcomes, worst=differing, contradicted=contradicted)


def _parse_by_swebench(parser: str, log: str, source: LogSource) -> ParsedLog:
    if parser not in SWEBENCH_PARSERS:
        raise GradingError(f"there is no log parser {parser!r} in swebench's registry", kind="parser")
    outcomes = _read(parser, log, source)
    # in these parsers the last line of a test wins, and code under test can print one when everything is over
    complaints = {line for line in log.split("\n") if _COMPLAINT.search(line)}
    if len(complaints) > _MAX_COMPLAINTS:
        return ParsedLog(outcomes={}, worst=dict.fromkeys(outcomes, "failed"))
    said = (_read(parser, line, source) for line in complaints)
    failed = {t for found in said for t, s in found.items() if s == "failed" and outcomes.get(t, "failed") != "failed"}
    return ParsedLog(outcomes=outcomes, worst=dict.fromkeys(failed, "failed"))


def _read(parser: str, log: str, source: LogSource) -> dict[str, str]:
    try:
        read = _registry()[parser]
    except KeyError:
        raise GradingError(f"the installed swebench package has no log parser {parser!r}", kind="parser") from None
    try:
        statuses = read(log, source)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        return {}  # a log is data: one that its parser cannot read names no test
    return {test: _OUTCOMES.get(status, "failed") for test, status in statuses.items()}


def _registry() -> Mapping[str, Callable[[str, LogSource], Mapping[str, str]]]:
    try:
        from swebench.harness.log_parsers import PARSER_REGISTRY
    except ImportError as error:
        raise ConfigError(
            "this task's log is read by the swebench package: pip install 'longhaul[grading]'", kind="extra"
        ) from error
    registry: Mapping[str, Callable[[str, LogSource], Mapping[str, str]]] = PARSER_REGISTRY
    return registry
