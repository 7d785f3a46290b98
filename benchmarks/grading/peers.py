"""The `swebench` package's grader beside ours, on the logs of the same pytest runs."""

from __future__ import annotations

from msgspec import Struct

from sandbox.curation.survey import LIMITS, Workshop
from sandbox.judgement.checkout import put_changes
from sandbox.judgement.harness import resolved_by_harness
from sandbox.judgement.verdicts import split_outcomes
from sandbox.parsers.reading import parse_log
from sandbox.patches import Change, Patch
from sandbox.tasks.packages import PYTHON
from sandbox.tasks.sources import ENVIRONMENT_INSIDE, sandbox_spec
from sandbox.tasks.task import Task


class Opinions(Struct, frozen=True):
    """Whether one patch solves its task: by the judge, and by two readings of one log."""

    judge: bool
    ours: bool
    theirs: bool

    @property
    def agree(self) -> bool:
        """Whether all three say the same."""
        return self.judge == self.ours == self.theirs


def is_told_apart_by_logs(task: Task) -> bool:
    """Whether pytest's summary lines, which are read up to the first space, name the task's tests in full."""
    return not any(" " in test for test in (*task.fail_to_pass, *task.pass_to_pass))


async def ask_both(shop: Workshop, task: Task, patch: Patch, judge: bool) -> Opinions:
    """Read the log of one run of the hidden tests by both graders; `judge` is what our own judge said of the patch."""
    log = await _log_of(shop, task, patch)
    _, failed = split_outcomes(task, parse_log("parse_log_pytest", log).outcomes)
    return Opinions(judge=judge, ours=not failed, theirs=resolved_by_harness(task, log))


async def _log_of(shop: Workshop, task: Task, patch: Patch) -> str:
    """What an ordinary `pytest -rA` prints of the hidden tests on the patched tree."""
    hidden = [
        Change(path=path, kind="deleted") if text is None else Change(path=path, kind="file", content=text.encode())
        for path, text in task.test_files.items()
    ]
    named = {test.partition("::")[0] for test in (*task.fail_to_pass, *task.pass_to_pass)}
    options = ["-rA", "--tb=no", "--color=no", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", task.workdir]
    paths = ":".join((ENVIRONMENT_INSIDE, *task.tests.import_paths))
    async with await shop.backend.create(sandbox_spec(task, shop.run, "log", LIMITS, shop.cache_dir)) as sandbox:
        await put_changes(sandbox, [*patch.changes, *hidden])
        command = [PYTHON, "-m", "pytest", *options, *sorted(named)]
        result = await sandbox.exec(command, timeout=shop.timeout_s, env={"PYTHONPATH": paths}, max_output=1 << 23)
    return result.text
