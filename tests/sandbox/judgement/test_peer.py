"""Our reading of a pytest log and the `swebench` package's give one verdict wherever the log is honest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.judgement.harness import resolved_by_harness
from sandbox.judgement.verdicts import split_outcomes
from sandbox.parsers.reading import parse_log
from sandbox.tasks.task import Task, TestSpec

pytest.importorskip("swebench", reason="the extra `grading` is not installed")

NAMES = ("t.py::a", "t.py::T::b", "t.py::c[1-x]", "t.py::c[2]", "t.py::d[log(x")
STATUSES = ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "")
STORED = {"XFAIL": "xfailed", "SKIPPED": "skipped"}
REASONS = {"FAILED": " - assert 1 == 2", "ERROR": " - boom", "XFAIL": " - known"}


def make_task(fail_to_pass: list[str], pass_to_pass: list[str], expected: dict[str, str] | None = None) -> Task:
    return Task(
        task_id="o__r-1",
        source="swe-bench",
        repository="o/r",
        issue="",
        image="i",
        fail_to_pass=tuple(fail_to_pass),
        pass_to_pass=tuple(pass_to_pass),
        tests=TestSpec(expected=expected or {}),
    )


def ours(task: Task, log: str) -> bool:
    return not split_outcomes(task, parse_log("parse_log_pytest", log).outcomes)[1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(STATUSES), min_size=len(NAMES), max_size=len(NAMES)),
    st.integers(1, len(NAMES)),
    st.randoms(use_true_random=False),
)
def test_honest_logs_have_one_verdict(statuses: list[str], num_turning: int, order) -> None:  # type: ignore[no-untyped-def]
    names = order.sample(NAMES, len(NAMES))
    # where theirs takes an expected failure or a skip for good, ours asks that the gold patch had it
    stored = {name: status for name, status in zip(names, statuses, strict=True) if status in ("XFAIL", "SKIPPED")}
    expected = {n: STORED[s] for n, s in stored.items() if s == "XFAIL" or n in names[num_turning:]}
    task = make_task(names[:num_turning], names[num_turning:], expected)
    lines = [
        f"{status} {name}{' y)] ' if name.endswith('(x') else ''}{REASONS.get(status, '')}"
        for name, status in zip(names, statuses, strict=True)
        if status
    ]
    log = "\n".join(["===== short test summary info =====", *order.sample(lines, len(lines)), "SKIPPED [1] t.py:3: no"])
    assert ours(task, log) == resolved_by_harness(task, log), log


@pytest.mark.parametrize(("second", "solved"), [("PASSED", True), ("XFAIL", False), ("FAILED", False)])
def test_a_cut_name_stands_for_all_that_it_begins(second: str, solved: bool) -> None:
    """SWE-bench Verified has 676 such names, and parsers that keep the spaces of a name."""
    task = make_task(["t.py::d[log(x"], [])
    log = f"PASSED t.py::d[log(x y)]\n{second} t.py::d[log(x z)]\n"
    outcomes = parse_log("parse_log_pytest_v2", log).outcomes
    assert outcomes.keys() == {"t.py::d[log(x y)]", "t.py::d[log(x z)]"}
    assert (not split_outcomes(task, outcomes)[1]) == solved
    assert split_outcomes(make_task(["t.py::d[none"], []), outcomes)[1] == ("t.py::d[none",)
    assert split_outcomes(make_task(["t.py::d"], []), outcomes)[1] == ("t.py::d",)
