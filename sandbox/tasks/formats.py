"""Records of public datasets -> `Task`, with each dataset's field names and quirks."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import msgspec

from protocol.errors import TaskError
from sandbox.diffs import reverse_diff
from sandbox.tasks.repositories import SWE_BENCH, test_command
from sandbox.tasks.task import Task, TestSpec
from sandbox.tasks.test_paths import is_test_module, paths_of_diff

Record = dict[str, Any]
Converter = Callable[[Record], Task]

_PYTEST = "pytest --no-header -rA --tb=no --color=no -p no:cacheprovider"
_ACTIVATE = "source /opt/miniconda3/bin/activate && conda activate testbed && "
_R2E_HIDDEN = ("/r2e_tests", "r2e_tests", "run_tests.sh", "expected_test_output.json", "parsed_commit.json")


def from_longhaul(record: Record) -> Task:
    """Our own schema: the fields of `Task`."""
    try:
        return msgspec.convert(record, Task)
    except msgspec.ValidationError as error:
        raise TaskError(f"task {record.get('task_id', '?')!r}: {error}", kind="schema") from error


def from_swe_bench(record: Record) -> Task:
    """SWE-bench, Lite, Verified; `image`, `eval_script`, `log_parser` count where release 5 of the harness has them."""
    name = _text(record, "instance_id")
    image = record.get("image") or f"swebench/sweb.eval.x86_64.{name.replace('__', '_1776_').lower()}:latest"
    return _swe_bench_like(record, "swe-bench", image)


def from_swe_gym(record: Record) -> Task:
    """SWE-Gym: as SWE-bench, with lists of tests and images of its own."""
    name = _text(record, "instance_id")
    image = record.get("docker_image") or f"xingyaoww/sweb.eval.x86_64.{name.replace('__', '_s_').lower()}:latest"
    return _swe_bench_like(record, "swe-gym", image)


def from_swe_rebench(record: Record) -> Task:
    """SWE-rebench: the test command and the log parser are in `install_config`, scores of a model in `meta`."""
    name = _text(record, "instance_id")
    config = _mapping(record, "install_config")
    meta = _mapping(record, "meta") if record.get("meta") else {}
    command = _text(config, "test_cmd", of=name)
    image = record.get("docker_image") or record.get("image_name")
    task = _swe_bench_like(
        record, "swe-rebench", image or f"swerebench/sweb.eval.x86_64.{name.replace('__', '_1776_').lower()}"
    )
    files = _test_paths(task)
    return msgspec.structs.replace(
        task,
        # the second edition keeps the repository in a directory of its own name
        workdir=f"/{task.repository.rpartition('/')[2]}" if "language" in record else "/testbed",
        tests=TestSpec(
            runner="log",
            command=" ".join([_ACTIVATE + command, *map(shlex.quote, files)]),
            parser=str(config.get("log_parser") or "parse_log_pytest"),
        ),
        metadata={**task.metadata, "llm_score": meta.get("llm_score") or {}, "is_lite": meta.get("is_lite")},
    )


def from_swe_smith(record: Record) -> Task:
    """SWE-smith: `patch` is the bug, so the gold patch is its reverse; the instance is a branch of the image's
    repository, whose last commit removes the failing tests."""
    name = _text(record, "instance_id")
    try:
        gold = reverse_diff(_text(record, "patch"))
    except ValueError as error:
        raise TaskError(f"task {name!r}: patch: {error}", kind="patch") from error
    fail_to_pass, pass_to_pass = _tests(record, "FAIL_TO_PASS"), _tests(record, "PASS_TO_PASS")
    files = sorted({test.partition("::")[0] for test in fail_to_pass + pass_to_pass})
    return Task(
        task_id=name,
        source="swe-smith",
        repository=_text(record, "repo"),
        issue=_text(record, "problem_statement"),
        fail_to_pass=fail_to_pass,
        pass_to_pass=pass_to_pass,
        image=_text(record, "image_name"),
        gold_patch=gold,
        checkout=name,
        hidden_from=f"{name}~1",
        tests=TestSpec(
            runner="log",
            command=" ".join([_ACTIVATE + _PYTEST, *map(shlex.quote, files)]),
            parser="parse_log_pytest",
        ),
    )


def from_r2e_gym(record: Record) -> Task:
    """R2E-Gym: solved when the outcome of the image's own tests is exactly the expected one."""
    commit = _text(record, "commit_hash")
    repository = _text(record, "repo_name")
    name = f"{repository}-{commit[:12]}"
    try:
        expected = json.loads(_text(record, "expected_output_json", of=name))
    except ValueError as error:
        raise TaskError(
            f"task {name!r}: expected_output_json: not JSON: {error}", kind="expected_output_json"
        ) from error
    if not isinstance(expected, dict) or not all(isinstance(status, str) for status in expected.values()):
        raise TaskError(f"task {name!r}: expected_output_json: expected statuses by test", kind="expected_output_json")
    issue = re.sub(r"\[/?ISSUE\]", "", _text(record, "problem_statement", of=name)).strip()
    return Task(
        task_id=name,
        source="r2e-gym",
        repository=repository,
        issue=f"{issue}\n",
        fail_to_pass=(),
        image=_text(record, "docker_image", of=name),
        removed=_R2E_HIDDEN,
        gold_patch=str(record.get("patch") or ""),
        base_commit=f"{commit}^",
        tests=TestSpec(
            runner="expected-output",
            setup="test -e r2e_tests || ln -s /r2e_tests r2e_tests",
            command="bash run_tests.sh",
            expected={_plain(test): status for test, status in expected.items()},
        ),
        metadata={"modified_files": list(record.get("modified_files") or [])},
    )


CONVERTERS: dict[str, Converter] = {
    "longhaul": from_longhaul,
    "swe-bench": from_swe_bench,
    "swe-rebench": from_swe_rebench,
    "swe-smith": from_swe_smith,
    "swe-gym": from_swe_gym,
    "r2e-gym": from_r2e_gym,
}


def recognise(record: Record) -> str:
    """Name of the schema that `record` follows, by its fields."""
    if "task_id" in record:
        return "longhaul"
    if "expected_output_json" in record:
        return "r2e-gym"
    if "install_config" in record:
        return "swe-rebench"
    if "instance_id" in record and "test_patch" in record:
        lists = isinstance(record.get("FAIL_TO_PASS"), list)  # as mirrors of SWE-bench have them, too
        is_bench = not lists or "image" in record or record.get("repo") in SWE_BENCH
        return "swe-bench" if is_bench else "swe-gym"
    if "instance_id" in record and "image_name" in record:
        return "swe-smith"
    raise TaskError(f"no known task schema has the fields {sorted(record)[:12]}", kind="schema")


def converter(schema: str, record: Record) -> Converter:
    """The converter of `schema`; `auto` recognises it by the fields of `record`."""
    return CONVERTERS[recognise(record) if schema == "auto" else schema]


def _swe_bench_like(record: Record, source: str, image: str) -> Task:
    name = _text(record, "instance_id")
    repository = _text(record, "repo")
    test_patch = _text(record, "test_patch")
    script = str(record.get("eval_script") or "")
    files = sorted(path for path in paths_of_diff(test_patch) if is_test_module(path) or path.endswith(".py"))
    command, parser = test_command(repository, str(record.get("version") or ""), files)
    return Task(
        task_id=name,
        source=source,
        repository=repository,
        issue=_text(record, "problem_statement"),
        fail_to_pass=_tests(record, "FAIL_TO_PASS"),
        pass_to_pass=_tests(record, "PASS_TO_PASS"),
        image=image,
        gold_patch=_text(record, "patch"),
        test_patch=test_patch,
        base_commit=_text(record, "base_commit"),
        tests=TestSpec(
            runner="log",
            command=script or _ACTIVATE + command,
            applies_tests=bool(script),
            parser=str(record.get("log_parser") or parser),
        ),
        metadata={"difficulty": record["difficulty"]} if record.get("difficulty") else {},
    )


def _test_paths(task: Task) -> list[str]:
    return sorted(path for path in paths_of_diff(task.test_patch) if is_test_module(path))


def _text(record: Record, field: str, of: str = "") -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value:
        found = "nothing" if value in (None, "") else type(value).__name__
        raise TaskError(f"task {of or _name(record)!r}: {field}: expected text, got {found}", kind=field)
    return value


def _mapping(record: Record, field: str) -> Record:
    value = record.get(field)
    if isinstance(value, str):  # Parquet editions hold nested fields as JSON
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        raise TaskError(f"task {_name(record)!r}: {field}: expected an object", kind=field)
    return value


def _tests(record: Record, field: str) -> tuple[str, ...]:
    """A list of test names, given as a list or as JSON text."""
    value = record.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(isinstance(test, str) for test in value):
        raise TaskError(f"task {_name(record)!r}: {field}: expected a list of test names, or it as JSON", kind=field)
    return tuple(value)


def _name(record: Record) -> str:
    return str(record.get("instance_id") or record.get("commit_hash") or "?")


def _plain(test: str) -> str:
    """A test name of R2E-Gym without terminal colours and without what follows it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", test).split(" - ")[0]
