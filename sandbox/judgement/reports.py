"""One run of the hidden tests by our own runner: what goes into the sandbox, and the report that comes out."""

from __future__ import annotations

import functools
import posixpath
import py_compile
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from protocol.errors import GradingError
from sandbox.base import ExecResult, Sandbox
from sandbox.judgement.canaries import Canaries, plant, twinned_of
from sandbox.judgement.checkout import hide_history, put_changes
from sandbox.judgement.runner.run_tests import decode_line, encode_line
from sandbox.judgement.sealing import seal_what_judges
from sandbox.judgement.starvation import check_had_time
from sandbox.judgement.verdicts import Report
from sandbox.patches import Change
from sandbox.tasks.packages import PYTHON
from sandbox.tasks.sources import ENVIRONMENT_INSIDE
from sandbox.tasks.task import Task

_RUNNER_SOURCE = Path(__file__).with_name("runner") / "run_tests.py"
_COMPILED = f"__pycache__/run_tests.{sys.implementation.cache_tag}.pyc"
_START = (  # whatever a repository calls `run_tests` is its own
    "import sys; sys.path.insert(0, sys.argv[1]); import run_tests as runner;"
    " del sys.path[0], sys.modules['run_tests']; runner.main(sys.argv[1])"
)
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
    sandbox: Sandbox,
    task: Task,
    taken: list[Change],
    timeout_s: float,
    *,
    apart: bool = False,
    opposite: Mapping[str, str] | None = None,
    their_time_s: float | None = None,
) -> SeenRun:
    """Put a change, the hidden tests and canaries on the clean tree of a fresh sandbox, and run the tests;
    `apart`: each function and each class in a process of its own; `opposite`: texts of hidden modules that are run in
    place of theirs, without twins (`control.py`).

    Raises `SandboxError` and `GradingError` when the place failed, `StarvedError` when it gave the tests less than
    `their_time_s` (default: `timeout_s`) before the deadline; whatever the tests did is in the result.
    """
    modules = {**hidden_modules(task), **(opposite or {})}
    directory = posixpath.dirname(next(iter(modules), ""))
    twinned = [] if opposite else twinned_of(task)
    canaries = plant(modules, directory, task.fail_to_pass, twinned=twinned)
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
    # on disk for pytest; the functions runner gets the texts, which on disk would only be targets
    texts = dict.fromkeys(files, "") if task.tests.runner == "pytest" else files
    flags = ["1" if flag else "" for flag in (task.tests.import_mode == "importlib", apart)]
    paths = task.tests.import_paths
    plan = [task.tests.runner, ENVIRONMENT_INSIDE, *flags, str(len(paths)), *paths]
    plan += [word for pair in texts.items() for word in pair]
    await sandbox.write(f"{place}/run_tests.py", _RUNNER_SOURCE.read_bytes())
    if task.image is None:  # our own Python, which need not compile it each time; another one does not look at it
        await sandbox.write(f"{place}/{_COMPILED}", _compiled_runner())
    await sandbox.write(f"{place}/plan", encode_line(plan))
    await sandbox.write(f"{place}/secrets", encode_line([nonce, str(timeout_s), task.tests.order]))
    command = [PYTHON, "-I", "-S", "-B", "-c", _START, place]
    result = await sandbox.exec(command, timeout=timeout_s + _GRACE_S, max_output=2 * _MAX_REPORT_BYTES)
    report, log = read_report(result, nonce)
    if result.timed_out or (isinstance(report, Report) and report.out_of_time):
        check_had_time(result, their_time_s or timeout_s, sandbox.spec.limits.cpus)
    if isinstance(report, Report) and report.broken:
        raise GradingError(f"task {task.task_id!r}: {report.broken}", kind="environment")
    return SeenRun(report=report, nonce=nonce, canaries=canaries, log=log)


@functools.cache
def _compiled_runner() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        compiled = f"{directory}/run_tests.pyc"
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(_RUNNER_SOURCE), compiled, "run_tests.py", doraise=True, invalidation_mode=unchecked)
        return Path(compiled).read_bytes()


def hidden_modules(task: Task) -> dict[str, str]:
    """The hidden files that are run, by path: each holds a test that the task names, or the task lists it."""
    named = {test.partition("::")[0] for test in (*task.fail_to_pass, *task.pass_to_pass)}
    run = {*task.tests.modules, *(path for path in named if path.endswith(".py"))}
    return {path: text for path, text in task.test_files.items() if text is not None and path in run}


def _hidden_file(path: str, text: str | None) -> Change:
    return (
        Change(path=path, kind="deleted")
        if text is None
        else Change(path=path, kind="file", content=text.encode("utf-8", "surrogateescape"))
    )


def read_report(result: ExecResult, nonce: str) -> tuple[Report | str, str]:
    """The runner's report, or why there is none, and what the tests printed. Only the runner's parent process holds
    this way out.

    What is wrong with the place itself is raised. Once code under test runs, which the parent says before, nothing is:
    that code can kill the parent, or take its memory away.
    """
    began, rest = encode_line([nonce]), result.head + result.tail
    is_place = not rest.startswith(began)
    line, found, log = rest.removeprefix(began).partition(b"\n")
    if is_place and result.exit_code == _NOT_FOUND:
        raise GradingError(f"no {PYTHON} in the sandbox to run the tests with: {result.text}", kind="python")
    if is_place and result.exit_code > 0 and not result.timed_out:
        raise GradingError(f"the test runner itself failed: {result.text[-2000:]}", kind="runner")
    if result.exit_code != 0 or result.timed_out or not found:
        return "the test run left no report", result.text
    try:
        return _report_of(decode_line(line)), log.decode(errors="replace")
    except ValueError as error:
        return f"the report is not readable: {error}", ""


def _report_of(words: list[str]) -> Report:
    """Raises `ValueError`."""
    nonce, garbled, finished, exit_status, out_of_time, broken, number, *rest = words
    repeated, pairs = rest[: int(number)], rest[int(number) :]
    return Report(
        nonce=nonce,
        outcomes=dict(zip(pairs[::2], pairs[1::2], strict=True)),
        repeated=repeated,
        garbled=int(garbled),
        finished=finished == "1",
        exit=int(exit_status) if exit_status else None,
        out_of_time=out_of_time == "1",
        broken=broken,
    )
