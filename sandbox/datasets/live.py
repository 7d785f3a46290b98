"""SWE-bench-Live: test commands and the log's parser are in the record, images by a rule of its own."""

from __future__ import annotations

from sandbox.datasets.fields import Record, commands, refusal, tests, text, texts
from sandbox.datasets.shell import ACTIVATE_IF_THERE
from sandbox.tasks.task import Task, TestSpec


def from_swe_bench_live(record: Record) -> Task:
    """SWE-bench-Live, for Linux. `rebuild_cmds` run before the tests, `print_cmds` after them.

    Its multi-language editions hold the parser as a program: that is refused, since a record is data.
    """
    name = text(record, "instance_id")
    if "windows" in str(record.get("platform") or record.get("os") or "").lower():
        raise refusal(record, "platform", "tasks for Windows cannot be run here")
    parser = str(record.get("log_parser") or record.get("parser") or "")
    if not parser:
        raise refusal(record, "log_parser", "expected the name of a log parser, got nothing")
    if "\n" in parser or "def " in parser:
        raise refusal(record, "log_parser", "is a program; no code of a record is run, name a parser instead")
    rebuilds = texts(record, "rebuild_cmds", required=False)
    image = record.get("docker_image") or f"starryzhang/sweb.eval.x86_64.{name.replace('__', '_1776_').lower()}"
    return Task(
        task_id=name,
        source="swe-bench-live",
        repository=text(record, "repo"),
        issue=text(record, "problem_statement"),
        fail_to_pass=tests(record, "FAIL_TO_PASS"),
        pass_to_pass=tests(record, "PASS_TO_PASS"),
        image=text({"docker_image": image}, "docker_image", of=name),
        gold_patch=text(record, "patch"),
        test_patch=text(record, "test_patch"),
        base_commit=text(record, "base_commit"),
        version=str(record.get("version") or ""),
        tests=TestSpec(
            runner="log",
            setup=ACTIVATE_IF_THERE + "\n".join(rebuilds) if any(map(str.strip, rebuilds)) else "",
            command=ACTIVATE_IF_THERE
            + "\n".join((*commands(record, "test_cmds"), *texts(record, "print_cmds", required=False))),
            parser=parser,
        ),
    )
