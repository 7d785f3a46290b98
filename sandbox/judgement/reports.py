"""One run of the hidden tests by our own runner: what goes into the sandbox, and the report that comes out."""

from __future__ import annotations

import posixpath
import secrets
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from protocol.errors import GradingError
from sandbox.base import ExecResult, Sandbox
from sandbox.judgement.canaries import Canaries, plant, twinned_of
from sandbox.judgement.checkout import hide_history, put_changes
from sandbox.judgement.sealing import seal_what_judges
from sandbox.judgement.verdicts import Report
from sandbox.patches import Change
from sandbox.tasks.packages import PYTHON
from sandbox.tasks.sources import ENVIRONMENT_INSIDE
from sandbox.tasks.task import Task

_RUNNER_SOURCE = Path(__file__).with_name("runner") / "run_tests.py"
_GRACE_S = 10.0
_MAX_REPORT_BYTES = 4 << 20
_NOT_FOUND = 127


class SeenRun(Struct, frozen=True, kw_only=True):
    """What is known of one run: the report (or why there is none), and what a genuine one must carry."""

    report: Report | str
    nonce: str
    canaries: Canaries
    log: str  # what the tests printed, cut in the middle

    @property
    def outcomes(self) -> dict[str, str]:
        """Outcomes of the real tests. Only for trees that hold no agent's work: nothing is verified."""
        if isinstance(self.report, str):
            return {}
        canaries = self.canaries.plain
        return {test: outcome for test, outcome in self.report.outcomes.items() if test not in canaries}


async def run_hidden_tests(
    sandbox: Sandbox, task: Task, taken: list[Change], timeout_s: float, *, apart: bool = False
) -> SeenRun:
    """Put a change, the hidden tests and canaries on the clean tree of a fresh sandbox, and run the tests;
    `apart`: each function and each class in a process of its own.

    Raises `SandboxError` and `GradingError` when the place failed; whatever the tests did is in the result.
    """
    modules = {path: text for path, text in task.test_files.items() if text is not None and _is_module(task, path)}
    directory = posixpath.dirname(next(iter(modules), ""))
    canaries = plant(modules, directory, task.fail_to_pass, twinned=twinned_of(task))
    hidden = [_hidden_file(path, canaries.sources.get(path, text)) for path, text in task.test_files.items()]
    if task.tests.runner == "pytest":
        hidden.append(_hidden_file(canaries.own_path, canaries.own_source))
    else:  # the functions runner has the modules in its plan; on disk they would only be targets
        hidden = [change for change in hidden if change.path not in modules]
    await put_changes(sandbox, [*taken, *hidden])
    if task.image is not None:  # its history has tests as they were before canaries rode along
        await hide_history(sandbox, task)
    await seal_what_judges(sandbox, task)

    place, nonce = f"/tmp/.{secrets.token_hex(8)}", secrets.token_hex(16)
    files = {**canaries.sources, canaries.own_path: canaries.own_source}
    plan: dict[str, Any] = {
        "runner": task.tests.runner,
        # on disk for pytest; the functions runner gets the texts, which on disk would only be targets
        "files": dict.fromkeys(files, "") if task.tests.runner == "pytest" else files,
        "import_paths": task.tests.import_paths,
        "site": ENVIRONMENT_INSIDE,
        "importlib": task.tests.import_mode == "importlib",
        "order": task.tests.order,
        "apart": apart,
        "deadline_s": timeout_s,
    }
    await sandbox.write(f"{place}/run_tests.py", _RUNNER_SOURCE.read_bytes())
    await sandbox.write(f"{place}/plan", msgspec.json.encode(plan))
    await sandbox.write(f"{place}/nonce", nonce.encode())
    command = [PYTHON, "-I", "-S", "-B", f"{place}/run_tests.py", place]
    result = await sandbox.exec(command, timeout=timeout_s + _GRACE_S, max_output=2 * _MAX_REPORT_BYTES)
    report, log = _read_report(result)
    if isinstance(report, Report) and report.broken:
        raise GradingError(f"task {task.task_id!r}: {report.broken}", kind="environment")
    return SeenRun(report=report, nonce=nonce, canaries=canaries, log=log)


def _is_module(task: Task, path: str) -> bool:
    """Whether a hidden file is one that is run: it holds a test that the task names, or the task lists it."""
    named = (*task.fail_to_pass, *task.pass_to_pass)
    return path in task.tests.modules or (path.endswith(".py") and any(t.startswith(f"{path}::") for t in named))


def _hidden_file(path: str, text: str | None) -> Change:
    return (
        Change(path=path, kind="deleted")
        if text is None
        else Change(path=path, kind="file", content=text.encode("utf-8", "surrogateescape"))
    )


def _read_report(result: ExecResult) -> tuple[Report | str, str]:
    """The runner's report, or why there is none, and what the tests printed. Only the runner's parent process holds
    this way out. What is wrong with the place itself is raised."""
    line, found, log = (result.head + result.tail).partition(b"\n")
    if result.exit_code == _NOT_FOUND:
        raise GradingError(f"no {PYTHON} in the sandbox to run the tests with: {result.text}", kind="python")
    if result.exit_code > 0 and not result.timed_out:
        raise GradingError(f"the test runner itself failed: {result.text[-2000:]}", kind="runner")
    if result.exit_code != 0 or result.timed_out or not found:
        return "the test run left no report", result.text
    try:
        return msgspec.json.decode(line, type=Report), log.decode(errors="replace")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"the report is not readable: {error}", ""
