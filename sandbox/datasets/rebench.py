"""SWE-rebench, both editions: `install_config` has the test command and the log parser, `meta` a model's scores."""

from __future__ import annotations

import re
import shlex

from sandbox.datasets.fields import Record, commands, mapping, refusal, tests, text
from sandbox.datasets.selection import changes_compiled_sources, files_to_run, keywords
from sandbox.datasets.shell import ACTIVATE, ACTIVATE_IF_THERE, exports, rebuild
from sandbox.tasks.task import Task, TestSpec

_BUILDS_ITSELF = re.compile(
    r"\b(make|cmake|ninja|meson|cargo|go|mvnw?|gradlew?|bazel|dotnet|stack|cabal|dune|swift|sbt|zig|mix|lein|rebar3)\b"
)


def from_swe_rebench(record: Record) -> Task:
    """The first edition, Python alone: the command is told the test files, as in SWE-bench's harness."""
    name = text(record, "instance_id")
    config = mapping(record, "install_config")
    command = " && ".join(commands(config, "test_cmd", of=name))
    fail_to_pass, pass_to_pass = tests(record, "FAIL_TO_PASS"), tests(record, "PASS_TO_PASS")
    files = files_to_run(record, text(record, "test_patch"), fail_to_pass, pass_to_pass)
    compiled = changes_compiled_sources(text(record, "patch"))
    built = _built(record, config, compiled, ACTIVATE)
    image = record.get("docker_image") or record.get("image_name")
    image = image or f"swerebench/sweb.eval.x86_64.{name.replace('__', '_1776_').lower()}"
    before = exports(record, "install_config.env_vars", config.get("env_vars")) + ACTIVATE
    spec = TestSpec(
        runner="log",
        command=" ".join([before + command, *map(shlex.quote, files)]) + keywords((*fail_to_pass, *pass_to_pass)),
        parser=str(config.get("log_parser") or "parse_log_pytest"),
        setup=built if compiled else "",
        rebuild="" if compiled else built,
    )
    return _task(record, "swe-rebench", text({"image_name": image}, "image_name", of=name), "/testbed", spec)


def from_swe_rebench_v2(record: Record) -> Task:
    """The second edition, twenty languages: commands run as they stand, in a directory of the repository's name."""
    name = text(record, "instance_id")
    config = mapping(record, "install_config")
    run = commands(config, "test_cmd", of=name)
    compiled = changes_compiled_sources(text(record, "patch"))
    builds_itself = any(_BUILDS_ITSELF.search(command) for command in run)
    built = "" if builds_itself else _built(record, config, compiled, ACTIVATE_IF_THERE)
    image = record.get("image_name") or record.get("docker_image")
    spec = TestSpec(
        runner="log",
        command=ACTIVATE_IF_THERE + "\n".join(run),
        parser=text(config, "log_parser", of=name),
        setup=built if compiled else "",
        rebuild="" if compiled else built,
        untimed=True,
    )
    workdir = f"/{text(record, 'repo').rpartition('/')[2]}"
    return _task(record, "swe-rebench-v2", text({"image_name": image}, "image_name", of=name), workdir, spec)


def _built(record: Record, config: Record, compiled: list[str], activate: str) -> str:
    """The install step as a set-up; empty where the record has none, and its patch changes nothing that is built."""
    if config.get("install"):
        return rebuild(commands(config, "install", of=str(record.get("instance_id"))), activate)
    if compiled:
        what = f"is empty, and the patch changes {compiled[0]!r}, which must be built again"
        raise refusal(record, "install_config.install", what)
    return ""


def _task(record: Record, source: str, image: str, workdir: str, spec: TestSpec) -> Task:
    meta = mapping(record, "meta") if record.get("meta") else {}
    return Task(
        task_id=text(record, "instance_id"),
        source=source,
        repository=text(record, "repo"),
        issue=text(record, "problem_statement"),
        fail_to_pass=tests(record, "FAIL_TO_PASS"),
        pass_to_pass=tests(record, "PASS_TO_PASS"),
        image=image,
        workdir=workdir,
        gold_patch=text(record, "patch"),
        test_patch=text(record, "test_patch"),
        base_commit=text(record, "base_commit"),
        version=str(record.get("version") or ""),
        tests=spec,
        metadata={"llm_score": meta.get("llm_score") or {}, "is_lite": meta.get("is_lite")},
    )
