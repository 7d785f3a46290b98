"""SWE-bench in every edition (full, Lite, Verified, Multilingual, release 5 of the harness), and SWE-Gym."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sandbox.datasets.fields import Record, mapping, refusal, tests, text
from sandbox.datasets.selection import changes_compiled_sources, files_to_run, keywords
from sandbox.datasets.shell import ACTIVATE, rebuild, traced
from sandbox.parsers.reading import END_MARKER, START_MARKER
from sandbox.tasks.diffs import files_after
from sandbox.tasks.repositories import django_modules, install_command, test_command
from sandbox.tasks.task import Task, TestSpec
from sandbox.tasks.test_paths import is_test_module

_EVAL_TYPES: dict[str, Literal["fails", "passes"]] = {"": "fails", "pass_and_fail": "fails", "fail_only": "passes"}


def from_swe_bench(record: Record) -> Task:
    """SWE-bench; `image`, `eval_script`, `log_parser`, `eval_type` count where release 5 of the harness has them."""
    name = text(record, "instance_id")
    image = record.get("image") or f"swebench/sweb.eval.x86_64.{name.replace('__', '_1776_').lower()}:latest"
    return swe_bench_like(record, "swe-bench", text({"image": image}, "image", of=name))


def from_swe_gym(record: Record) -> Task:
    """SWE-Gym: as SWE-bench, with lists of tests and images of its own."""
    name = text(record, "instance_id")
    image = record.get("docker_image") or f"xingyaoww/sweb.eval.x86_64.{name.replace('__', '_s_').lower()}:latest"
    return swe_bench_like(record, "swe-gym", text({"docker_image": image}, "docker_image", of=name))


def swe_bench_like(record: Record, source: str, image: str) -> Task:
    """A task of a record with SWE-bench's fields, in an image with SWE-bench's environment."""
    repository = text(record, "repo")
    version = str(record.get("version") or "")
    return Task(
        task_id=text(record, "instance_id"),
        source=source,
        repository=repository,
        issue=text(record, "problem_statement"),
        fail_to_pass=tests(record, "FAIL_TO_PASS"),
        pass_to_pass=tests(record, "PASS_TO_PASS"),
        image=image,
        gold_patch=text(record, "patch"),
        test_patch=text(record, "test_patch"),
        base_commit=text(record, "base_commit"),
        version=version,
        tests=_from_script(record) if record.get("eval_script") else _from_repository(record, repository, version),
        metadata={"difficulty": record["difficulty"]} if record.get("difficulty") else {},
    )


def _from_script(record: Record) -> TestSpec:
    script = text(record, "eval_script")
    if script.count(START_MARKER) != 1 or script.count(END_MARKER) != 1:
        raise refusal(record, "eval_script", "has not exactly one pair of SWE-bench's markers")
    kind = str(record.get("eval_type") or "")
    if kind not in _EVAL_TYPES:
        raise refusal(record, "eval_type", f"expected pass_and_fail or fail_only, got {kind[:80]!r}")
    if record.get("image_assets") and mapping(record, "image_assets").get("test_patch"):
        raise refusal(record, "image_assets", "the tests need files from the web, which no sandbox reaches")
    return TestSpec(
        runner="log",
        command=traced(script),
        applies_tests=True,
        parser=text(record, "log_parser"),
        absent=_EVAL_TYPES[kind],
    )


def _from_repository(record: Record, repository: str, version: str) -> TestSpec:
    if record.get("eval_type"):
        raise refusal(record, "eval_script", "an eval_type came without it")
    fail_to_pass, pass_to_pass = tests(record, "FAIL_TO_PASS"), tests(record, "PASS_TO_PASS")
    files = _files_to_run(record, fail_to_pass, pass_to_pass)
    if strange := [path for path in files if not path.endswith(".py")]:
        raise refusal(record, "eval_script", f"nobody knows how {strange[0]!r} is run, and the record does not say it")
    install = install_command(repository)
    if (compiled := changes_compiled_sources(text(record, "patch"))) and not install:
        raise refusal(record, "patch", f"changes {compiled[0]!r}, and no install step says how it is built again")
    built = rebuild([install]) if install else ""
    command, parser = test_command(repository, version, files)
    command += keywords((*fail_to_pass, *pass_to_pass))
    return TestSpec(
        runner="log",
        command=ACTIVATE + command,
        parser=str(record.get("log_parser") or parser),
        setup=built if compiled else "",
        rebuild="" if compiled else built,
    )


def _files_to_run(record: Record, fail_to_pass: Sequence[str], pass_to_pass: Sequence[str]) -> list[str]:
    """Files with named tests; where the test patch changes no module of tests, Django's tests tell theirs by name."""
    patch = text(record, "test_patch")
    if record["repo"] == "django/django" and not any(map(is_test_module, files_after(patch))):
        modules = django_modules((*fail_to_pass, *pass_to_pass))
    else:
        modules = []
    return modules or files_to_run(record, patch, fail_to_pass, pass_to_pass)
