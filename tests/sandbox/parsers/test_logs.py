"""What is read in logs, and what must not be."""

from __future__ import annotations

import pytest

from protocol.errors import GradingError
from sandbox.parsers.own import parse_r2e
from sandbox.parsers.reading import between_markers, parse_log


def test_summary_lines_are_read() -> None:
    log = (
        "collected 5 items\n\x1b[32mPASSED\x1b[0m a.py::one\nFAILED a.py::two - AssertionError: x\nERROR a.py::three\n"
        "SKIPPED [2] a.py:3: no\nXFAIL a.py::four\nXPASS a.py::five\nPASSED a.py::p[x y]\nFAILED a.py::p[x z]\n"
    )
    parsed = parse_log("pytest", log)
    assert parsed.outcomes == {
        "a.py::one": "passed",
        "a.py::two": "failed",
        "a.py::three": "failed",
        "a.py::four": "xfailed",
        "a.py::five": "xpassed",
        "a.py::p[x": "failed",
    }
    assert parsed.contradicted == []
    assert parse_log("pytest", "FAILED a.py::x\nPASSED a.py::x\n").contradicted == ["a.py::x"]
    assert parse_log("pytest", "PASSED a.py::x\nERROR a.py::x\n").outcomes == {"a.py::x": "failed"}


def test_r2e_names() -> None:
    log = "PASSED not::this\n== short test summary info ==\nPASSED t.py::T::a\nFAILED t.py::T::b - E\nERROR t.py\n"
    assert parse_r2e(log) == {"T.a": "PASSED", "T.b": "FAILED"}
    assert parse_r2e("no summary") == {}


@pytest.mark.parametrize("log", ["", ">>>>> Start Test Output", ">>>>> End Test Output >>>>> Start Test Output"])
def test_markers_must_be_one_pair(log: str) -> None:
    assert between_markers(log) is None
    assert between_markers(f"{log}>>>>> Start Test Output x >>>>> End Test Output") in (None, " x ")


def test_swebench_parsers() -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    assert parse_log("parse_log_django", "test_x (a.T) ... ok\n").outcomes == {"test_x (a.T)": "passed"}
    with pytest.raises(GradingError, match="no log parser"):
        parse_log("parse_log_nothing", "")
