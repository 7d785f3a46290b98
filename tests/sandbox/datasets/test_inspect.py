"""What a record becomes is told without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.data.records import RECORDS
from sandbox.datasets.inspect import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    unknown = {**RECORDS["swe-bench 5"], "instance_id": "a__b-1", "log_parser": "parse_log_mine"}
    lines = [*map(json.dumps, (RECORDS["swe-smith"], unknown, RECORDS["r2e-gym"])), "{broken"]
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "tasks.jsonl"


def test_records_for_programs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--json"], "inspect") == 0
    smith, unknown, r2e, broken = map(json.loads, capsys.readouterr().out.split("\n")[:4])
    assert (smith["dataset"], smith["removed"]) == ("swe-smith", ["tests/test_cart.py"])
    assert smith["command"].endswith("tests/test_cart.py tests/test_till.py")
    assert "log_parser: nothing here reads" in unknown["refused"]
    assert r2e["fail_to_pass"] == ["TestCart.test_total"]
    assert "not JSON" in broken["refused"]


def test_records_for_people(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--task", RECORDS["swe-smith"]["instance_id"]], "inspect") == 0
    said = capsys.readouterr()
    assert said.out.startswith("1: corner__shop.5f0c1d2e.func_pm_remove__ab12cd34\n   dataset: swe-smith\n")
    assert said.err == "2 tasks, 2 records refused\n"


def test_a_source_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing.jsonl")], "longhaul tasks inspect") == 2
    assert "no task file" in capsys.readouterr().err


def test_a_refused_record_is_found_by_its_name_and_a_name_that_is_none_is_said(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file), "--task", "a__b-1"], "inspect") == 0
    assert "log_parser: nothing here reads" in capsys.readouterr().out
    assert main([str(file), "--task", "a__b-2"], "inspect") == 2
    assert "has no task 'a__b-2'" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["~nobody-of-this-name/tasks.jsonl", "a" * 300 + ".jsonl"])
def test_a_path_that_cannot_be_is_one_line(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([source], "inspect") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_generated_tasks_are_read_as_those_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["micro", "--count", "2", "--json"], "inspect") == 0
    readings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [reading["dataset"] for reading in readings] == ["longhaul"] * 2
