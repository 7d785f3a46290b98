"""Records that are read wrong in good faith: which tests run, which dataset it is, what is found at loading."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.data.cases import CASES, Case
from benchmarks.data.records import RECORDS, SCHEMAS
from protocol.config import TaskSettings
from protocol.errors import ConfigError, TaskError
from sandbox.datasets.formats import CONVERTERS, converter, recognise
from sandbox.datasets.inspect import readings
from sandbox.datasets.loading import load_tasks
from sandbox.tasks.diffs import files_after, files_gone, files_of_diff
from sandbox.tasks.task import check_task

ALL = [case for cases in CASES.values() for case in cases]


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_a_record_is_read_right_or_refused_by_field(case: Case) -> None:
    assert case.wrong() == ""


@pytest.mark.parametrize("name", RECORDS)
def test_a_dataset_is_recognised_by_its_own_fields(name: str) -> None:
    assert recognise(RECORDS[name]) == SCHEMAS[name]
    task = check_task(converter("auto", RECORDS[name])(RECORDS[name]))
    assert task.source == SCHEMAS[name] or name == "longhaul"


def test_a_file_may_mix_datasets(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS.values()))
    assert len(load_tasks(TaskSettings(source=str(tmp_path / "t.jsonl")))) == len(RECORDS)


def make_directory(place: Path, config: str = '[environment]\ndocker_image = "corner/cart:1"\n') -> Path:
    (place / "environment").mkdir(parents=True)
    (place / "tests" / "deep").mkdir(parents=True)
    (place / "solution").mkdir()
    (place / "task.toml").write_text(config)
    (place / "instruction.md").write_text("Make the total right.\n")
    (place / "environment" / "Dockerfile").write_text("FROM python:3\nWORKDIR /srv\nWORKDIR /app\n")
    (place / "tests" / "test.sh").write_text("echo 1 > /logs/verifier/reward.txt\n")
    (place / "tests" / "deep" / "state.py").write_text("x = 1\n")
    (place / "solution" / "solve.sh").write_text("true\n")
    return place


def test_task_directories(tmp_path: Path) -> None:
    make_directory(tmp_path / "one")
    make_directory(tmp_path / "two", "[environment]\n")
    make_directory(tmp_path / "three", "not toml")
    (tmp_path / "four").mkdir()
    (tmp_path / "four" / "task.yaml").write_text("instruction: x\n")
    for source in (tmp_path, tmp_path / "one"):
        [task] = load_tasks(TaskSettings(source=str(source)))
        assert (task.task_id, task.image, task.workdir) == ("one", "corner/cart:1", "/app")
        assert set(task.test_files) == {"/tests/test.sh", "/tests/deep/state.py"}
    with pytest.raises(ConfigError, match=r"'two': environment.docker_image"):
        load_tasks(TaskSettings(source=str(tmp_path / "two")))
    with pytest.raises(ConfigError, match=r"'four': task.yaml: the older form"):
        load_tasks(TaskSettings(source=str(tmp_path / "four")))


def test_scripts_of_pro_are_found_beside_the_file(tmp_path: Path) -> None:
    record = {k: v for k, v in RECORDS["swe-bench-pro"].items() if k not in ("run_script", "parser_script")}
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(record)}\n")
    settings = TaskSettings(source=str(tmp_path / "t.jsonl"))
    with pytest.raises(ConfigError, match=r"run_script: is missing.*run_scripts/instance_Corner"):
        load_tasks(settings)
    place = tmp_path / "run_scripts" / record["instance_id"]
    place.mkdir(parents=True)
    (place / "run_script.sh").write_text("pytest $1\n")
    (place / "parser.py").write_text("x = 1\n")
    [task] = load_tasks(settings)
    assert task.test_files["/workspace/run_script.sh"] == "pytest $1\n"
    (tmp_path / "t.jsonl").write_text(json.dumps(record | {"instance_id": f"../run_scripts/{record['instance_id']}"}))
    with pytest.raises(ConfigError, match="run_script: is missing"):
        load_tasks(settings)


def test_code_under_test_finds_no_answers() -> None:
    multi = converter("multi-swe-rl", {})(RECORDS["multi-swe-rl"]).tests.command
    assert multi.index("rm -f /home/fix.patch") < multi.index("test-run.sh")
    r2e = converter("r2e-gym", {})(RECORDS["r2e-gym"]).tests
    assert r2e.setup.startswith("rm -f expected_test_output.json parsed_commit.json;")


BINARY = (
    "diff --git a/tests/cart data.bin b/tests/cart data.bin\nnew file mode 100644\nGIT binary patch\nliteral 1\nIcmZP\n"
)
MODE = "diff --git a/x y.py b/x y.py\nold mode 100644\nnew mode 100755\n"
EMPTY = "diff --git a/tests/empty.py b/tests/empty.py\nnew file mode 100644\nindex 0000000..e69de29\n"
COPY = "diff --git a/a.py b/b.py\nsimilarity index 100%\ncopy from a.py\ncopy to b.py\n"
PLAIN = (
    "--- a/pkg/mod.py\t2025-01-01\n+++ b/pkg/mod.py\t2025-01-02\n@@ -1 +1 @@\n-x\n+y\n"
    "--- /dev/null\n+++ b/t.py\n@@ -0,0 +1 @@\n+x\n"
)
NO_NEWLINE = "--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-x\n\\ No newline at end of file\n+y\n\\ No newline at end of file\n"


def test_headers_of_diffs() -> None:
    assert files_after(BINARY + MODE + EMPTY + COPY) == ["b.py", "tests/cart data.bin", "tests/empty.py", "x y.py"]
    assert files_gone(BINARY + MODE + EMPTY + COPY) == set()
    assert files_after(PLAIN + NO_NEWLINE) == ["m.py", "pkg/mod.py", "t.py"]
    assert [(f.before, f.after) for f in files_of_diff(PLAIN)] == [("pkg/mod.py", "pkg/mod.py"), (None, "t.py")]
    assert files_of_diff("") == []


ODD = [
    None,
    0,
    1.5,
    True,
    "",
    " ",
    "x",
    "\0",
    "[]",
    "{}",
    "null",
    "[[[",
    '["\\ud800"]',
    [],
    {},
    [None],
    [""],
    ["\0"],
    [[]],
]
ODD += [{"a": None}, {"a": {"b": []}}, "a" * 300, 10**30, b"bytes", "../..", "caf\u00e9\u2028x", ["a\nb"], ["--help"]]


def _places(record: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in record.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from _places(value, (*before, key))


@pytest.mark.parametrize("name", RECORDS)
def test_a_field_of_any_form_is_taken_or_refused_and_nothing_else(name: str) -> None:
    for place in _places(RECORDS[name]):
        for odd in (*ODD, KeyError):
            record = copy.deepcopy(RECORDS[name])
            holder = record
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = odd
            if odd is KeyError:
                del holder[place[-1]]
            with contextlib.suppress(TaskError):
                msgspec.json.encode(converter_and_check(record))


def converter_and_check(record: Any) -> Any:
    return check_task(converter("auto", record)(record))


def test_a_record_that_nobody_foresaw_is_one_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprised(record: Any) -> Any:
        return record["no such field"]

    monkeypatch.setitem(CONVERTERS, "swe-gym", surprised)
    good, odd = RECORDS["swe-bench"], RECORDS["swe-gym"]
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(odd)}\n{json.dumps(good)}\n")
    settings = TaskSettings(source=str(tmp_path / "t.jsonl"))
    assert [task.task_id for task in load_tasks(settings)] == [good["instance_id"]]
    refused = next(readings(settings)).refused
    assert odd["instance_id"] in refused and "KeyError" in refused
