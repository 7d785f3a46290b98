"""The swebench package's grader is asked about the log that we read, with all that its parsers want to know."""

from __future__ import annotations

import pytest

from sandbox.judgement.harness import can_ask_harness, resolved_by_harness
from sandbox.parsers.reading import LogSource, parse_log
from sandbox.tasks.task import Task, TestSpec

pytest.importorskip("swebench", reason="the extra `grading` is not installed")
LOGS = {
    "pytest": "\x1b[32mPASSED\x1b[0m tests/test_cart.py::test_total\n",
    "parse_log_pytest": "PASSED tests/test_cart.py::test_total\n",
    "parse_log_lighthouse": "PASS src/cart.test.js\n",
}


@pytest.mark.parametrize("parser", LOGS)
def test_it_sees_what_we_see(parser: str) -> None:
    source = LogSource(instance_id="corner__shop-12", version="3.0")
    outcomes = parse_log(parser, LOGS[parser], (), source).outcomes
    assert set(outcomes.values()) == {"passed"}
    task = Task(
        task_id=source.instance_id,
        version=source.version,
        source="swe-bench",
        repository="corner/shop",
        issue="i",
        image="img",
        fail_to_pass=tuple(outcomes),
        tests=TestSpec(runner="log", command="c", parser=parser),
    )
    assert can_ask_harness(task)
    assert resolved_by_harness(task, LOGS[parser])
    assert not resolved_by_harness(task, LOGS[parser].replace("PASS", "FAIL"))
