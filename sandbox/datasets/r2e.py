"""R2E-Gym: solved when the outcome of the image's own tests is exactly the expected one."""

from __future__ import annotations

import json
import re

from sandbox.datasets.fields import Record, refusal, text, texts
from sandbox.parsers.own import R2E_STATUSES
from sandbox.tasks.task import Task, TestSpec

_ANSWERS = ("expected_test_output.json", "parsed_commit.json")  # judgement needs neither
_HIDDEN = ("/r2e_tests", "r2e_tests", "run_tests.sh", *_ANSWERS)


def from_r2e_gym(record: Record) -> Task:
    """R2E-Gym; its tests are in the image, hidden from the agent."""
    commit = text(record, "commit_hash")
    repository = text(record, "repo_name")
    name = f"{repository}-{commit[:12]}"
    try:
        expected = json.loads(text(record, "expected_output_json", of=name))
    except ValueError as error:
        raise refusal(record, "expected_output_json", f"not JSON: {error}", name) from error
    if not isinstance(expected, dict) or not all(status in R2E_STATUSES for status in expected.values()):
        what = f"expected one of {', '.join(R2E_STATUSES)} by test"
        raise refusal(record, "expected_output_json", what, name)
    # a module that cannot be collected has no test's name there, and nobody compares it
    by_test = {plain: status for test, status in expected.items() if (plain := _plain(test))}
    if not by_test:
        raise refusal(record, "expected_output_json", "names no test", name)
    issue = re.sub(r"\[/?ISSUE\]", "", text(record, "problem_statement", of=name)).strip()
    return Task(
        task_id=name,
        source="r2e-gym",
        repository=repository,
        issue=f"{issue}\n",
        fail_to_pass=(),
        image=text(record, "docker_image", of=name),
        removed=_HIDDEN,
        gold_patch=str(record.get("patch") or ""),
        base_commit=f"{commit}^",
        tests=TestSpec(
            runner="expected-output",
            setup=f"rm -f {' '.join(_ANSWERS)}; test -e r2e_tests || ln -s /r2e_tests r2e_tests",
            command="bash run_tests.sh",
            expected=by_test,
        ),
        metadata={"modified_files": list(texts(record, "modified_files", of=name, required=False))},
    )


def _plain(test: str) -> str:
    """A test name of R2E-Gym without terminal colours and without what follows it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", test).split(" - ")[0]
