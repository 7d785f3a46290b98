"""The `swebench` package's grader: another reading of a log."""

from __future__ import annotations

import tempfile

from sandbox.parsers.names import SWEBENCH_PARSERS
from sandbox.parsers.reading import END_MARKER, START_MARKER, without_colours
from sandbox.tasks.task import Task


def why_no_harness() -> str:
    """Why the `swebench` package cannot be asked; empty when it can."""
    try:
        import swebench.harness.grading  # noqa: F401
    except ImportError as error:
        return f"the swebench package is not installed (extra `grading`): {error}"
    return ""


def can_ask_harness(task: Task) -> bool:
    """Whether that grader reads this task's log by the same rule as we: by a parser of its own, and without what its
    records do not hold."""
    tests = task.tests
    known = tests.parser in ("", "pytest", *SWEBENCH_PARSERS)
    return known and not tests.expected and not tests.untimed and tests.absent != "passes" and not why_no_harness()


def resolved_by_harness(task: Task, log: str) -> bool:
    """The verdict of the `swebench` package's grader on a log of the task's command."""
    from swebench.harness.grading import get_eval_report
    from swebench.types import TestSpec

    parser = task.tests.parser
    ours = parser in ("", "pytest")
    spec = TestSpec(
        instance_id=task.task_id,
        image="",
        eval_script_list=[],
        repo=task.repository,
        version=task.version,
        FAIL_TO_PASS=list(task.fail_to_pass),
        PASS_TO_PASS=list(task.pass_to_pass),
        log_parser="parse_log_pytest" if ours else parser,
        eval_type="pass_and_fail",
    )
    prediction = {"instance_id": task.task_id, "model_patch": "", "model_name_or_path": "longhaul"}
    log = without_colours(log) if ours else log
    marked = log if START_MARKER in log else f"{START_MARKER}\n{log}\n{END_MARKER}\n"
    with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
        file.write(marked)
        file.flush()
        return bool(get_eval_report(spec, prediction, file.name, True)[task.task_id]["resolved"])
