"""Logs are read as swebench's own parsers read them; captured output decides nothing; doubt is kept beside."""

from __future__ import annotations

import json

import pytest

from benchmarks.data.logs import LOGS, inner_session
from sandbox.parsers.names import SWEBENCH_PARSERS
from sandbox.parsers.own import TESTS_JSON_MARK, parse_reward, parse_tests_json, without_duration
from sandbox.parsers.reading import LogSource, parse_log, shows_a_run

SOURCE = LogSource(instance_id="corner__shop-12", version="3.1")


def test_the_names_are_those_of_swebench() -> None:
    registry = pytest.importorskip("swebench.harness.log_parsers", reason="the extra `grading` is not installed")
    assert frozenset(registry.PARSER_REGISTRY) == SWEBENCH_PARSERS


@pytest.mark.parametrize("name", LOGS)
def test_every_parser_gives_swebench_s_outcomes(name: str) -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    from benchmarks.data.disagreements import disagreements

    assert disagreements(LOGS[name], SOURCE) == []


def test_an_inner_session_decides_nothing() -> None:
    log = inner_session(["tests/test_plugin.py::test_reports", "tests/test_plugin.py::test_failures"])
    outcomes = parse_log("parse_log_pytest", log)
    assert outcomes.outcomes["tests/test_plugin.py::test_reports"] == "passed"
    assert outcomes.contradicted == ["inner_case.py::test_one"]  # of nobody's interest: the task does not name it


def test_what_stands_before_the_summary_with_canaries_decides_nothing() -> None:
    named = "tests/test_plugin.py::test_reports"
    inner = f"=========== short test summary info ===========\nFAILED {named} - assert 0\n=== 1 failed in 0.1s ===\n"
    outer = f"==== short test summary info ====\nPASSED {named}\nFAILED t.py::test_edge_case - x\n"
    for parser in ("pytest", "parse_log_pytest", "parse_log_pytest_options"):
        parsed = parse_log(parser, inner + outer, vouching={"test_edge_case"})
        assert parsed.cautious()[named] == "passed"
        assert parsed.contradicted == []
        # who prints one more summary when everything is over contradicts the genuine one
        forged = inner.replace("FAILED", "PASSED")
        late = parse_log(parser, outer.replace("PASSED", "FAILED", 1) + forged, vouching={"test_edge_case"})
        assert late.cautious()[named] == "failed"


def test_a_later_pass_does_not_hide_a_failure() -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    for parser in ("parse_log_scikit", "parse_log_pytest"):
        parsed = parse_log(parser, "FAILED a.py::x - no\nPASSED a.py::x\n")
        assert (parsed.outcomes["a.py::x"], parsed.cautious()["a.py::x"]) == ("passed", "failed")


def test_a_log_that_its_parser_cannot_read_names_no_test() -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    assert parse_log("parse_log_calypso", "{broken").outcomes == {}
    assert parse_log("parse_log_jest_json", "{broken").outcomes == {}


def test_own_forms() -> None:
    assert parse_reward("x\n>>>>> Reward: 1.0\n") == {"reward": "passed"}
    for forged in (">>>>> Reward: 0\n>>>>> Reward: 1.0\n", ">>>>> Reward: 1\n>>>>> Reward: 0\n"):
        assert parse_reward(forged) == {}
    assert parse_reward(">>>>> Reward: 0.5\n") == {"reward": "failed"}
    for rewards, outcome in (('{"reward": 1, "style": 0}', "passed"), ('{"a": 1.0, "b": 0.5}', "failed")):
        assert parse_reward(f">>>>> Reward: {rewards}\n") == {"reward": outcome}
    assert parse_reward(">>>>> Reward: {}\n") == parse_reward('>>>>> Reward: {"reward": "1"}\n') == {}
    assert parse_reward(">>>>> Reward: \n") == parse_reward("") == {}
    tests = (
        f'x\n{TESTS_JSON_MARK}{{"tests": [{{"name": "a b", "status": "PASSED"}}, {{"name": "c", "status": "x"}}]}}\n'
    )
    assert parse_tests_json(tests) == {"a b": "passed", "c": "failed"}
    for statuses in (["PASSED", "FAILED"], ["SKIPPED", "PASSED"], ["FAILED", "PASSED", "SKIPPED"]):
        twice = json.dumps({"tests": [{"name": "a", "status": status} for status in statuses]})
        assert parse_tests_json(f"{TESTS_JSON_MARK}{twice}\n") == {"a": "passed"}
    assert parse_tests_json(f"{TESTS_JSON_MARK}[1]\n") == {}
    assert without_duration("adds up (12 ms)") == without_duration("\x1b[32madds up\x1b[0m [0.5s]") == "adds up"


@pytest.mark.parametrize(("log", "ran"), [("", False), ("Executed 0 of 0", False), ("Executed 3 of 3 SUCCESS", True)])
def test_a_sign_that_shows_a_run(log: str, ran: bool) -> None:
    assert shows_a_run(log) == ran
