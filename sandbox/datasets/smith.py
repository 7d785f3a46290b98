"""SWE-smith: `patch` is the bug, so the gold patch is its reverse."""

from __future__ import annotations

import shlex

from sandbox.datasets.fields import Record, refusal, tests, text
from sandbox.datasets.selection import as_argument, changes_compiled_sources, file_of_test, keywords
from sandbox.datasets.shell import ACTIVATE, PYTEST
from sandbox.diffs import reverse_diff
from sandbox.tasks.task import Task, TestSpec


def from_swe_smith(record: Record) -> Task:
    """The image has the sound repository, without most of the instances' branches: the bug comes from the record, and
    the files that FAIL_TO_PASS names are hidden from the agent and there for judgement."""
    bug = text(record, "patch")
    try:
        gold = reverse_diff(bug)
    except ValueError as error:
        raise refusal(record, "patch", str(error)) from error
    fail_to_pass, pass_to_pass = tests(record, "FAIL_TO_PASS"), tests(record, "PASS_TO_PASS")
    for field, named in (("FAIL_TO_PASS", fail_to_pass), ("PASS_TO_PASS", pass_to_pass)):
        if strange := [test for test in named if not file_of_test(test).endswith(".py")]:
            what = f"{strange[0][:200]!r} names no Python file, and no command comes with it"
            raise refusal(record, field, what)
    if compiled := changes_compiled_sources(bug):
        raise refusal(record, "patch", f"changes {compiled[0]!r}, and no install step says how it is built again")
    hidden = sorted({file_of_test(test) for test in fail_to_pass})
    files = sorted({*hidden, *(file_of_test(test) for test in pass_to_pass)})
    return Task(
        task_id=text(record, "instance_id"),
        source="swe-smith",
        repository=text(record, "repo"),
        issue=text(record, "problem_statement"),
        fail_to_pass=fail_to_pass,
        pass_to_pass=pass_to_pass,
        image=text(record, "image_name"),
        removed=tuple(hidden),
        setup_patch=bug,
        gold_patch=gold,
        tests=TestSpec(
            runner="log",
            command=" ".join([ACTIVATE + PYTEST, *map(shlex.quote, map(as_argument, files))])
            + keywords((*fail_to_pass, *pass_to_pass)),
            parser="parse_log_pytest",
        ),
    )
