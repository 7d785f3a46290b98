"""Records of public datasets, with their quirks, become tasks; bad ones are named and the rest goes on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from protocol.config import TaskSettings
from protocol.errors import ConfigError, TaskError
from sandbox.datasets.formats import CONVERTERS, recognise
from sandbox.datasets.loading import load_tasks, save_tasks
from sandbox.tasks.task import Task, check_task

GOLD = "diff --git a/pkg/mod.py b/pkg/mod.py\n--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
BUG = "diff --git a/pkg/mod.py b/pkg/mod.py\n--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -1 +1 @@\n-x = 2\n+x = 1\n"
TEST_PATCH = GOLD.replace("pkg/mod.py", "tests/test_mod.py")

SWE_BENCH: dict[str, Any] = {
    "instance_id": "django__django-11099",
    "repo": "django/django",
    "base_commit": "d26b2424437dabeeca94d7900b37d2df4410da0c",
    "version": "3.0",
    "patch": GOLD,
    "test_patch": TEST_PATCH,
    "problem_statement": "x is wrong",
    "hints_text": "",
    "created_at": "2019-03-20T03:46:18Z",
    "environment_setup_commit": "419a78300f7cd27611196e1e464d50fd0385ff27",
    "FAIL_TO_PASS": '["test_x (test_mod.T)"]',
    "PASS_TO_PASS": "[]",
    "difficulty": "<15 min fix",
}
SWE_GYM = {
    **{k: v for k, v in SWE_BENCH.items() if k != "difficulty"},
    "instance_id": "getmoto__moto-5752",
    "repo": "getmoto/moto",
    "FAIL_TO_PASS": ["tests/test_mod.py::test_x"],
    "PASS_TO_PASS": [],
}
SWE_REBENCH = {
    **SWE_GYM,
    "instance_id": "0b01001001__spectree-64",
    "repo": "0b01001001/spectree",
    "docker_image": "swerebench/sweb.eval.x86_64.0b01001001_1776_spectree-64",
    "install_config": {"python": "3.9", "test_cmd": "pytest --no-header -rA", "log_parser": "parse_log_pytest"},
    "meta": {"is_lite": True, "llm_score": {"difficulty_score": 1, "issue_text_score": 3, "test_score": 0}},
    "FAIL_TO_FAIL": [],
    "PASS_TO_FAIL": [],
}
SWE_SMITH = {
    "instance_id": "oauthlib__oauthlib.1fd52536.combine_file__09vlzwgc",
    "repo": "swesmith/oauthlib__oauthlib.1fd52536",
    "patch": BUG,
    "image_name": "jyangballin/swesmith.x86_64.oauthlib_1776_oauthlib.1fd52536",
    "problem_statement": "x is wrong",
    "FAIL_TO_PASS": ["tests/test_mod.py::test_x"],
    "PASS_TO_PASS": ["tests/test_other.py::test_y"],
}
R2E_GYM = {
    "repo_name": "orange3",
    "docker_image": "namanjain12/orange3_final:2d9617bd0cb1f0ba61771258410ab8fae8e7e24d",
    "commit_hash": "2d9617bd0cb1f0ba61771258410ab8fae8e7e24d",
    "prompt": "…",
    "problem_statement": "[ISSUE]\nx is wrong\n[/ISSUE]",
    "parsed_commit_content": "{}",
    "execution_result_content": "{}",
    "expected_output_json": json.dumps({"TestX.test_a": "PASSED", "\u001b[1mTestX.test_b\u001b[0m - E": "FAILED"}),
    "modified_files": ["pkg/mod.py"],
    "relevant_files": [],
}
LONGHAUL = {
    "task_id": "mine/1",
    "source": "injected",
    "repository": "pkg",
    "issue": "x is wrong",
    "fail_to_pass": ["test_x.py::test_x"],
    "files": {"pkg.py": "x = 1\n"},
    "test_files": {"test_x.py": "def test_x():\n    from pkg import x\n    assert x == 2\n"},
}
RECORDS = {
    "longhaul": LONGHAUL,
    "swe-bench": SWE_BENCH,
    "swe-rebench": SWE_REBENCH,
    "swe-smith": SWE_SMITH,
    "swe-gym": SWE_GYM,
    "r2e-gym": R2E_GYM,
}


def convert(schema: str, **changes: Any) -> Task:
    return check_task(CONVERTERS[schema]({**RECORDS[schema], **changes}))


@pytest.mark.parametrize("schema", RECORDS)
def test_a_schema_is_recognised_by_its_fields(schema: str) -> None:
    assert recognise(RECORDS[schema]) == schema
    assert convert(schema).repository


def test_swe_bench() -> None:
    task = convert("swe-bench")
    assert task.image == "swebench/sweb.eval.x86_64.django_1776_django-11099:latest"
    assert (task.workdir, task.fail_to_pass, task.pass_to_pass) == ("/testbed", ("test_x (test_mod.T)",), ())
    assert task.tests.parser == "parse_log_django"
    assert task.tests.command.endswith("runtests.py --verbosity 2 --settings=test_sqlite --parallel 1 test_mod")
    assert not task.tests.applies_tests


def test_swe_bench_with_lists() -> None:
    record = {**SWE_BENCH, "FAIL_TO_PASS": ["test_x (test_mod.T)"], "PASS_TO_PASS": []}
    assert recognise(record) == "swe-bench"
    assert check_task(CONVERTERS["swe-bench"](record)) == convert("swe-bench")


def test_swe_bench_with_its_own_script() -> None:
    script = "git checkout d26b test_mod.py\n: '>>>>> Start Test Output'\npytest\n: '>>>>> End Test Output'\n"
    task = convert("swe-bench", image="my/image:1", eval_script=script, log_parser="parse_log_pytest_v2")
    assert (task.image, task.tests.applies_tests) == ("my/image:1", True)
    assert task.tests.command == f"set -uxo pipefail\n{script}"  # or bash would not print the markers
    assert task.tests.parser == "parse_log_pytest_v2"


def test_swe_gym() -> None:
    task = convert("swe-gym")
    assert task.image == "xingyaoww/sweb.eval.x86_64.getmoto_s_moto-5752:latest"
    assert task.fail_to_pass == ("tests/test_mod.py::test_x",)


def test_swe_rebench() -> None:
    task = convert("swe-rebench")
    assert task.image == SWE_REBENCH["docker_image"]
    assert task.tests.command.endswith("pytest --no-header -rA tests/test_mod.py")
    assert task.metadata["llm_score"]["issue_text_score"] == 3
    assert convert("swe-rebench", docker_image=None, image_name="other/image").image == "other/image"
    assert convert("swe-rebench", install_config=json.dumps(SWE_REBENCH["install_config"])) == task


def test_swe_smith_turns_the_bug_round() -> None:
    task = convert("swe-smith")
    assert "+x = 2\n-x = 1\n" in task.gold_patch
    assert (task.setup_patch, task.removed) == (BUG, ("tests/test_mod.py",))
    assert task.tests.command.endswith("tests/test_mod.py tests/test_other.py")


def test_r2e_gym() -> None:
    task = convert("r2e-gym")
    assert task.tests.expected == {"TestX.test_a": "PASSED", "TestX.test_b": "FAILED"}
    assert task.issue == "x is wrong\n"
    assert "/r2e_tests" in task.removed


@pytest.mark.parametrize(
    ("schema", "changes", "field"),
    [
        ("swe-bench", {"FAIL_TO_PASS": "not json"}, "FAIL_TO_PASS"),
        ("swe-bench", {"FAIL_TO_PASS": [1]}, "FAIL_TO_PASS"),
        ("swe-bench", {"FAIL_TO_PASS": "[]"}, "fail_to_pass"),
        ("swe-bench", {"test_patch": None}, "test_patch"),
        ("swe-bench", {"PASS_TO_PASS": '["test_x (test_mod.T)"]'}, "pass_to_pass"),
        ("swe-rebench", {"install_config": {}}, "test_cmd"),
        ("swe-rebench", {"install_config": "{"}, "install_config"),
        ("swe-smith", {"patch": ""}, "patch"),
        ("r2e-gym", {"expected_output_json": "[]"}, "expected_output_json"),
        ("longhaul", {"issue": 3}, "issue"),
        ("longhaul", {"surprise": 1}, "surprise"),
        ("longhaul", {"files": {"../x": ""}}, "files"),
        ("longhaul", {"image": "both"}, "image"),
        ("longhaul", {"test_files": {}}, "test_files"),
        ("longhaul", {"task_id": "a b"}, "task_id"),
    ],
)
def test_a_bad_record_is_named_by_task_and_field(schema: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(TaskError, match=field) as caught:
        convert(schema, **changes)
    names = [RECORDS[schema].get(key) for key in ("task_id", "instance_id")] + ["orange3-2d9617bd0cb1", "a b"]
    assert any(name in str(caught.value) for name in names if name)


def write_lines(path: Path, *records: Any) -> TaskSettings:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records))
    return TaskSettings(source=str(path))


def test_the_rest_of_a_file_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    no_tests = {**SWE_GYM, "instance_id": "a__b-2", "FAIL_TO_PASS": []}
    settings = write_lines(
        tmp_path / "t.jsonl", SWE_GYM, "{broken", "7", no_tests, SWE_GYM, "", {**SWE_GYM, "instance_id": "a__b-3"}
    )
    with caplog.at_level(logging.WARNING):
        tasks = load_tasks(settings)
    assert [task.task_id for task in tasks] == ["getmoto__moto-5752", "a__b-3"]
    said = caplog.text
    assert "record 2: not JSON" in said
    assert "record 3: expected a JSON object" in said
    assert "'a__b-2': fail_to_pass" in said
    assert "appears twice" in said


def test_nothing_usable_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"instance_id|no known task schema"):
        load_tasks(write_lines(tmp_path / "t.jsonl", {"x": 1}))
    with pytest.raises(ConfigError, match="no records"):
        load_tasks(write_lines(tmp_path / "empty.jsonl"))
    with pytest.raises(ConfigError, match="no task file"):
        load_tasks(TaskSettings(source=str(tmp_path / "missing.jsonl")))
    with pytest.raises(ConfigError, match="neither"):
        load_tasks(TaskSettings(source="what is this"))
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(ConfigError, match="Parquet"):
        load_tasks(TaskSettings(source=str(tmp_path / "x.parquet")))


@pytest.mark.parametrize("schema", ["swe-bench", "swe-rebench", "swe-smith", "swe-gym", "r2e-gym"])
def test_parquet_gives_the_same_tasks(tmp_path: Path, schema: str) -> None:
    parquet.write_table(pa.Table.from_pylist([RECORDS[schema]]), tmp_path / "t.parquet")
    [task] = load_tasks(TaskSettings(source=str(tmp_path / "t.parquet")))
    again = convert(schema)
    assert msgspec.structs.replace(task, metadata={}) == msgspec.structs.replace(again, metadata={})


def test_a_saved_file_is_read_back(tmp_path: Path) -> None:
    tasks = [convert(schema) for schema in RECORDS]
    save_tasks(tasks, tmp_path / "deep" / "t.jsonl")
    assert load_tasks(TaskSettings(source=str(tmp_path / "deep" / "t.jsonl"))) == tasks
    assert len(load_tasks(TaskSettings(source=str(tmp_path / "deep" / "t.jsonl"), count=2))) == 2


def test_micro_is_made_here() -> None:
    tasks = load_tasks(TaskSettings(count=3))
    assert [task.source for task in tasks] == ["micro"] * 3
    assert all(check_task(task).ref.task_id == task.task_id for task in tasks)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset as the hub lays it out: a file a split, one as Parquet and one as JSON lines."""
    folder = tmp_path / "swe-gym"
    (folder / "data").mkdir(parents=True)
    records = [{**SWE_GYM, "instance_id": f"getmoto__moto-{number}"} for number in range(3)]
    parquet.write_table(pa.Table.from_pylist(records[:2]), folder / "data" / "train-00000-of-00001.parquet")
    parquet.write_table(pa.Table.from_pylist(records[2:]), folder / "data" / "test-00000-of-00001.parquet")
    return folder


def test_a_dataset_is_loaded_by_split(dataset: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    first, second = load_tasks(TaskSettings(source=str(dataset)))
    assert first == convert("swe-gym", instance_id="getmoto__moto-0")
    assert second.task_id == "getmoto__moto-1"
    [held_out] = load_tasks(TaskSettings(source=str(dataset), split="test"))
    assert held_out.task_id == "getmoto__moto-2"
    with pytest.raises(ConfigError, match=r"split 'dev'.*test"):
        load_tasks(TaskSettings(source=str(dataset), split="dev"))


def test_a_dataset_of_json_lines(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    for name, record in (("train", SWE_BENCH), ("test", SWE_REBENCH)):
        write_lines(tmp_path / f"{name}.jsonl", record)
    assert load_tasks(TaskSettings(source=str(tmp_path))) == [convert("swe-bench")]
    with pytest.raises(ConfigError, match="dataset"):
        (tmp_path / "train.jsonl").write_text("{broken")
        load_tasks(TaskSettings(source=str(tmp_path)))


LOAD = """
import sys
from protocol.config import TaskSettings
from protocol.errors import ConfigError
from sandbox.datasets.loading import load_tasks
if sys.argv[1] == "absent":
    sys.modules["datasets"] = None
try:
    load_tasks(TaskSettings(source=sys.argv[2]))
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("library", "complaint"),
    [
        ("absent", "'nobody/nothing' is a Hugging Face dataset: pip install"),
        ("there", "dataset 'nobody/nothing', split"),
    ],
)
def test_a_dataset_that_cannot_be_had_is_named(tmp_path: Path, library: str, complaint: str) -> None:
    if library == "there":
        pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", LOAD, library, "nobody/nothing"]
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=120, check=True)
    assert complaint in done.stdout, done
